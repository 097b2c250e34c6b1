"""What ends the wait of an idle raft thread, and what does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pysyncobj.node import Node
from raft_sim import Sim
from test_raft_rules import Alone

from clusterfs.raft.consensus import Command, Poller
from clusterfs.raft.core import REGULAR
from clusterfs.raft.messages import AnyMessage, AppendReply, Forward, PreVote, Whisper
from clusterfs.raft.reads import Read


@pytest.fixture
def leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    """With everything committed, and told."""
    alone = Alone(Sim(tmp_path, monkeypatch, seed=1))
    alone.lead()
    for uid in ("n2", "n3"):
        alone.say(uid, answer(alone))
    alone.tick()
    return alone


def answer(alone: Alone, match: int | None = None, *, ok: bool = True) -> AppendReply:
    raft = alone.raft
    return AppendReply(
        raft.raftCurrentTerm, ok, raft.log.last_index, raft.log.last_index if match is None else match, 1, alone.sim.now
    )


def wait(alone: Alone, *arrivals: Callable[[], object]) -> int:
    """How often it polls while these arrive one after the other, and then nothing."""
    polls, left = 0, list(arrivals)

    def poll(timeout_s: float) -> None:
        nonlocal polls
        polls += 1
        if left:
            alone.sim.now += 0.01
            left.pop(0)()
        else:
            alone.sim.now += timeout_s

    Poller(alone.raft, poll).poll(0.25)
    return polls


def arrives(alone: Alone, message: AnyMessage, uid: str = "n2") -> Callable[[], None]:
    return lambda: alone.raft._SyncObj__onMessageReceived(Node(uid), message)


def test_a_leader_waits_on_when_there_is_nothing_but_answers_to_its_heartbeats(leader: Alone) -> None:
    due = leader.raft._SyncObj__newAppendEntriesTime
    assert wait(leader, arrives(leader, answer(leader)), arrives(leader, answer(leader), "n3")) == 3
    assert leader.sim.now == pytest.approx(due), "and not beyond the next heartbeat"


def test_an_answer_is_noted_although_it_ends_no_wait(leader: Alone) -> None:
    leader.sim.now += 0.5
    leader.tick()
    wait(leader, arrives(leader, answer(leader)))
    leader.sim.now += 0.6
    leader.tick()
    assert leader.raft._isLeader(), "it would have stepped down, unanswered for more than a second"


@pytest.mark.parametrize(
    "kind", ["command", "read", "call", "forward", "whisper", "pre-vote", "refusal", "link", "bell"]
)
def test_everything_else_ends_the_wait(leader: Alone, kind: str) -> None:
    raft = leader.raft
    events: dict[str, Callable[[], object]] = {
        "command": lambda: raft.submit(Command(REGULAR + b"x")),
        "read": lambda: raft.submit_read(Read(lambda _value, _reason: None, lambda: None)),
        "call": lambda: raft.call_soon(lambda: None),
        "forward": arrives(leader, Forward([(1, REGULAR + b"x")])),
        "whisper": arrives(leader, Whisper(b"x")),
        "pre-vote": arrives(leader, PreVote(9, 1, 0, 0)),
        "refusal": arrives(leader, AppendReply(raft.raftCurrentTerm + 1, False, -1, 0, 0, leader.sim.now)),
        "link": lambda: leader.exchange.link("n3", up=False),
        "bell": lambda: None,
    }
    answered = arrives(leader, answer(leader))

    def both() -> None:
        answered()
        events[kind]()

    assert wait(leader, answered, events["bell"] if kind == "bell" else both) == 2


def test_an_answer_that_confirms_more_ends_the_wait(leader: Alone) -> None:
    leader.raft.submit(Command(REGULAR + b"x"))
    leader.tick()
    assert wait(leader, arrives(leader, answer(leader))) == 1


def test_a_follower_answers_at_once(leader: Alone) -> None:
    leader.say("n2", leader.append(leader.raft.log.last_index, [], commit=0, term=leader.raft.raftCurrentTerm + 1))
    assert not leader.raft._isLeader()
    beat = leader.append(leader.raft.log.last_index, [], commit=0, term=leader.raft.raftCurrentTerm)
    assert wait(leader, arrives(leader, beat)) == 1
