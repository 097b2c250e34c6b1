"""Between the guard and its courier: numbers, deadlines, and a courier that hangs or dies."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ha.keeper import core, wire
from ha.keeper import link as link_module
from ha.keeper.link import LineLost, Link
from ha.leases import FAST, NORMAL


@pytest.fixture
def pair() -> tuple[Link, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return Link(ours), theirs


def test_a_renewal_carries_the_terms_and_its_answer_the_time_of_sending(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    link.ask(core.Renew(7, NORMAL), rest_deadline_s=1.0)
    asked = wire.decode_ask(theirs.recv(4096))
    assert (asked.kind, asked.incarnation, asked.pause_ms, asked.takeover_ms) == ("renew", 7, 8000, 18018)
    assert asked.interval_ms == 3000
    theirs.send(wire.encode(wire.Answer(asked.number, wire.DONE, 12, next_in_ms=2400)))
    event = link.wait(1.0)
    assert isinstance(event, core.Renewed)
    assert (int(event.sent_at * 1000), event.incarnation, event.next_in_s) == (asked.sent_ms, 7, 2.4)


@pytest.mark.parametrize(
    ("call", "answer", "event"),
    [
        (core.Acquire(FAST), wire.Answer(1, wire.DONE, 5), core.Acquired),
        (core.Rest(5), wire.Answer(1, wire.DONE), core.Rested),
        (core.Renew(5, FAST), wire.Answer(1, wire.REFUSED), core.Refused),
        (core.Renew(5, FAST), wire.Answer(1, wire.FAILED, cause="no quorum"), core.Failed),
        (core.Renew(5, FAST), wire.Answer(1, "nonsense"), core.Failed),
        (core.Renew(5, FAST), wire.Answer(0, wire.LEFT), core.Left),
    ],
)
def test_answers_become_events(
    pair: tuple[Link, socket.socket], call: link_module.Call, answer: wire.Answer, event: type[core.Event]
) -> None:
    link, theirs = pair
    link.ask(call, rest_deadline_s=1.0)
    theirs.send(wire.encode(answer))
    assert isinstance(link.wait(1.0), event)


def test_an_answer_to_a_question_that_was_given_up_means_nothing(
    pair: tuple[Link, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, theirs = pair
    monkeypatch.setattr(link_module, "PATIENCE_S", -10.0)
    link.ask(core.Renew(7, FAST), rest_deadline_s=1.0)
    assert link.wait(0.0) == core.Failed("the courier does not answer")
    theirs.send(wire.encode(wire.Answer(1, wire.DONE, 12)))
    assert link.wait(1.0) is None
    assert link.wait(0.0) is None, "it fails once"


def test_what_is_no_message_changes_nothing(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    theirs.send(b"\xff\x00")
    assert link.wait(1.0) is None


@pytest.mark.parametrize("has_unread", [False, True])
def test_a_line_without_an_other_end_is_told_and_not_asked_again_and_again(
    pair: tuple[Link, socket.socket], has_unread: bool
) -> None:
    link, theirs = pair
    if has_unread:
        # Then the end comes as a reset.
        link.ask(core.Renew(7, FAST), rest_deadline_s=1.0)
    theirs.close()
    with pytest.raises(LineLost):
        link.wait(1.0)


# In a process of its own: the nursery is forked, which a process with threads should not do.
HANGING = """
import os, select, signal, sys
from pathlib import Path
from ha.keeper import core, link, wire
from ha.keeper.courier import raise_nursery

def hello(ours):
    while (answer := wire.decode_answer(ours.recv(4096))).kind != wire.HELLO:
        pass
    return answer.value

link.PATIENCE_S = 0.2
ours = raise_nursery("u", Path(sys.argv[1]))
ours.settimeout(20.0)
first = hello(ours)
os.kill(first, signal.SIGSTOP)
ours.setblocking(False)
line = link.Link(ours)
line._take(wire.Answer(0, wire.HELLO, first))
line.ask(core.Rest(1), rest_deadline_s=0.0)
while not isinstance(event := line.wait(0.1), core.Failed):
    pass
assert event == core.Failed("the courier does not answer"), event
ours.settimeout(20.0)
second = hello(ours)
assert second != first
handle = os.pidfd_open(second)
ours.close()
assert select.select([handle], [], [], 20.0)[0], "it outlives its line"
print("replaced")
"""


def test_a_courier_that_hangs_is_replaced_and_ends_with_the_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path / "no.sock")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("replaced\n", "")
