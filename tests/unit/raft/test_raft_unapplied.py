"""What is in a node's log and not applied there yet, as others may ask; and when those are woken who watch what is applied."""

from pathlib import Path

import pytest
from raft_sim import Sim
from test_raft_rules import Alone
from test_raft_waiting import answer

from clusterfs.raft.consensus import UNAPPLIED_LOOK, UNAPPLIED_LOOK_BYTES, Command
from clusterfs.raft.core import REGULAR


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alone:
    return Alone(Sim(tmp_path, monkeypatch, seed=1))


def test_a_follower_knows_what_is_under_way_until_it_is_committed(alone: Alone) -> None:
    base = alone.raft.log.last_index
    alone.say("n2", alone.append(base, [(REGULAR + b"write same", base + 1, 1)], commit=base))
    assert alone.raft.is_behind()
    assert alone.raft.unapplied_with(b"same") == base + 1
    assert alone.raft.unapplied_with(b"other") == 0
    alone.say("n2", alone.append(base + 1, [], commit=base + 1))
    assert not alone.raft.is_behind()
    assert alone.raft.unapplied_with(b"same") == 0


def test_a_leader_knows_it_too(alone: Alone) -> None:
    alone.lead()
    alone.say("n2", answer(alone))
    assert not alone.raft.is_behind()
    alone.raft.submit(Command(REGULAR + b"write same"))
    alone.tick()
    assert alone.raft.unapplied_with(b"same") == alone.raft.log.last_index
    alone.say("n2", answer(alone))
    assert alone.raft.unapplied_with(b"same") == 0


def test_who_is_answered_finds_the_entry_applied(alone: Alone) -> None:
    alone.lead()
    alone.say("n2", answer(alone))
    behind: list[bool] = []
    alone.raft.submit(Command(REGULAR + b"write same", lambda _value, _reason: behind.append(alone.raft.is_behind())))
    alone.tick()
    assert alone.raft.is_behind()
    alone.say("n2", answer(alone))
    assert behind == [False]


def test_of_very_much_only_the_newest_and_its_beginning_is_looked_at(alone: Alone) -> None:
    base = alone.raft.log.last_index
    texts = [b"first", *[b"more %d" % number for number in range(UNAPPLIED_LOOK)]]
    entries = [(REGULAR + text, base + 1 + at, 1) for at, text in enumerate(texts)]
    alone.say("n2", alone.append(base, entries, commit=base))
    assert alone.raft.unapplied_with(b"more") == base + len(texts)
    assert alone.raft.unapplied_with(b"first") == 0
    base += len(texts)
    entry = REGULAR + b"begin" + b"x" * UNAPPLIED_LOOK_BYTES + b"end"
    alone.say("n2", alone.append(base, [(entry, base + 1, 1)], commit=base))
    assert alone.raft.unapplied_with(b"begin") == base + 1
    assert alone.raft.unapplied_with(b"end") == 0


def test_those_who_watch_are_woken_once_after_all_answers(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(alone.machine, "settled", lambda: told.append("settled"))
    alone.lead()
    alone.say("n2", answer(alone))
    told.clear()
    for number in range(3):
        alone.raft.submit(Command(REGULAR + b"%d" % number, lambda _value, _reason: told.append("answered")))
    alone.tick()
    assert told == []
    alone.say("n2", answer(alone))
    assert told == ["answered"] * 3 + ["settled"]
    alone.tick()
    assert told == ["answered"] * 3 + ["settled"]


def test_those_who_watch_a_follower_are_woken(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(alone.machine, "settled", lambda: told.append(alone.raft.raftLastApplied))
    base = alone.raft.log.last_index
    alone.say("n2", alone.append(base, alone.entries(base + 1, base + 2), commit=base + 2))
    assert told[-1] == base + 2
