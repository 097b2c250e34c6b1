"""The lab's watchdog cuts the power of those who were armed and are not fed, at their time, and of nobody else."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvorum.errors import NotFound, Timeout
from lab import watchdog_control
from lab.boot import environment
from lab.layout import LabLayout
from lab.node import Node
from lab.watchdog import LONGEST_S, SECOND_LOOK_S, Timers, Watch


class FakePower:
    """Notes who lost power; `meanwhile` happens while somebody else has the power switch."""

    def __init__(self) -> None:
        self.cuts: list[int] = []
        self.notes: list[str] = []
        self.off: set[int] = set()
        self.meanwhile: Callable[[], None] = lambda: None
        self.is_stuck = False

    def cut(self, number: int, is_still_due: Callable[[], bool], note: str) -> bool:
        if self.is_stuck:
            raise Timeout("process 7 does not die")
        self.meanwhile()
        if number in self.off or not is_still_due():
            return False
        self.cuts.append(number)
        self.notes.append(note)
        return True


class World:
    """Two nodes, their keepers' ends of the sockets, and a clock that moves only while the watchdog sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []
        pairs = {number: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for number in (1, 2)}
        for ours, _ in pairs.values():
            ours.setblocking(False)
        self.pairs = pairs
        self.power = FakePower()
        self.watch = Watch({number: ours for number, (ours, _) in pairs.items()}, self.power, lambda: self.now)

    def say(self, number: int, text: str) -> None:
        self.pairs[number][1].send(text.encode())

    def feed(self, number: int, seconds: float = 5.0) -> None:
        self.say(number, f"alive {self.now + seconds}")

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds

    def turns(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.watch.turn(self.sleep)

    def close(self) -> None:
        for pair in self.pairs.values():
            for one in pair:
                one.close()


@pytest.fixture
def world() -> Iterator[World]:
    one = World()
    yield one
    one.close()


def test_nobody_is_cut_who_was_never_armed(world: World) -> None:
    world.turns(100)
    assert world.power.cuts == []


def test_an_armed_node_is_cut_soon_after_its_time_and_not_before(world: World) -> None:
    world.feed(2)
    world.turns(4.9)
    assert world.power.cuts == []
    world.turns(0.3)
    assert world.power.cuts == [2]
    assert "did not feed its watchdog" in world.power.notes[0]
    world.turns(10)
    assert world.power.cuts == [2], "once"


def test_a_node_that_is_fed_lives_and_dies_when_that_ends(world: World) -> None:
    for _ in range(20):
        world.feed(1)
        world.turns(1)
    assert world.power.cuts == []
    world.turns(6)
    assert world.power.cuts == [1]


def test_a_node_that_is_disarmed_may_fall_silent(world: World) -> None:
    world.feed(1)
    world.turns(1)
    world.say(1, "off")
    world.turns(20)
    assert world.power.cuts == []


def test_a_reset_that_is_asked_for_comes_at_once_armed_or_not(world: World) -> None:
    world.say(1, "reset")
    world.turns(0.2)
    assert world.power.cuts == [1]
    assert "asked for the reset" in world.power.notes[0]


def test_a_datagram_that_waited_grants_no_more_time_than_was_meant(world: World) -> None:
    world.feed(1)
    world.now += 4.9
    world.turns(0.5)
    assert world.power.cuts == [1]


def test_a_watchdog_that_was_held_up_hears_what_is_on_its_way_before_it_judges(world: World) -> None:
    world.feed(1)
    world.turns(1)

    def held_up(seconds: float) -> None:
        if seconds == SECOND_LOOK_S:
            world.feed(1)
            world.sleep(seconds)
        else:
            world.sleep(8.0)

    world.watch.turn(held_up)
    assert world.power.cuts == []
    assert world.naps[-2:] == [8.0, SECOND_LOOK_S]


def test_who_was_powered_on_anew_while_the_power_was_waited_for_is_left_alone(world: World) -> None:
    world.feed(1)
    world.power.meanwhile = lambda: world.say(1, "off")
    world.turns(20)
    assert world.power.cuts == []


def test_a_node_that_is_off_already_is_forgotten(world: World) -> None:
    world.feed(1)
    world.power.off = {1}
    world.turns(6)
    world.power.off = set()
    world.turns(6)
    assert world.power.cuts == []


def test_power_that_could_not_be_cut_is_tried_again(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.feed(1)
    world.power.is_stuck = True
    world.turns(6)
    assert "process 7 does not die" in capsys.readouterr().err
    world.power.is_stuck = False
    world.turns(0.2)
    assert world.power.cuts == [1]


@pytest.mark.parametrize("text", [b"", b"alive", b"alive x", b"alive nan", b"alive 1 2", b"live 1", b"\xff\x00"])
def test_what_is_no_sentence_of_ours_changes_nothing(text: bytes) -> None:
    timers = Timers()
    timers.take(1, b"alive 1005", 1000.0)
    timers.take(1, text, 1001.0)
    assert timers.due == {1: 1005.0}


def test_nobody_can_be_armed_for_ever() -> None:
    timers = Timers()
    timers.take(1, b"alive inf", 1000.0)
    assert timers.overdue(1000.0 + LONGEST_S) == [1]


def test_daemons_of_a_node_are_told_where_its_watchdog_listens(tmp_path: Path) -> None:
    node = LabLayout("lab", tmp_path).node(2)
    assert environment(node)["KVORUM_WATCHDOG"] == str(node.watchdog_socket)


def test_whoever_asks_for_a_node_that_its_watchdog_cut_off_learns_why(tmp_path: Path) -> None:
    node = LabLayout("lab", tmp_path).node(2)
    node.directory.mkdir(parents=True)
    with pytest.raises(NotFound, match=r"^node n2 is off$"):
        _ = Node(node).pid
    node.watchdog_note.write_text("its watchdog cut its power at 12:00:00")
    with pytest.raises(NotFound, match="n2 is off: its watchdog cut its power at 12:00:00"):
        Node(node).thaw()
    watchdog_control.switch_off(node)
    assert watchdog_control.cause(node) == ""
