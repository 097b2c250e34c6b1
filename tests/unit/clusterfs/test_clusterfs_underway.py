"""A look at what is just being changed elsewhere: through a real mount, of a node that has the entry and not yet the commit."""

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clusterfs import fusewire as wire
from clusterfs.commands import Delete, Envelope, Mkdir, Move, Op, Write, encode
from clusterfs.fusesession import LOOKERS, Session
from clusterfs.underway import PATIENCE_S, UnderWay


def hold(store: Any, op: Op) -> None:
    store.replica.hold(encode(Envelope(op, client="other", seq=len(store.replica.log) + len(store.replica.held) + 1)))


def soon(store: Any) -> None:
    """The commit comes a little later, as it does."""
    threading.Timer(0.05, store.replica.apply_held).start()


@pytest.fixture
def path(store: Any) -> Path:
    store.execute(Write("bench/same", b"old", parents=True))
    path: Path = store.root / "bench/same"
    assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"old", "from the kernel's pages"
    assert not store.replica.waits
    return path


def test_a_file_that_is_being_rewritten_is_read_as_it_becomes(store: Any, path: Path) -> None:
    hold(store, Write("bench/same", b"new and longer"))
    soon(store)
    assert path.read_bytes() == b"new and longer"
    assert path.read_bytes() == b"new and longer"


def test_a_file_that_is_being_made_is_there_at_the_first_look(store: Any, path: Path) -> None:
    hold(store, Write("bench/made", b"content"))
    soon(store)
    assert (path.parent / "made").read_bytes() == b"content"


def test_a_file_that_is_being_renamed_is_found_under_its_new_name_and_not_under_the_old(store: Any, path: Path) -> None:
    store.execute(Write("bench/tmp", b"newer"))
    hold(store, Move("bench/tmp", "bench/same", replace=True))
    soon(store)
    assert path.read_bytes() == b"newer"
    assert not (path.parent / "tmp").exists()


def test_others_do_not_wait(store: Any, path: Path) -> None:
    store.execute(Write("bench/sam", b"shorter name"))
    hold(store, Write("bench/same.tmp", b"bench/sam is a word in here"))
    assert path.read_bytes() == b"old"
    assert (path.parent / "sam").read_bytes() == b"shorter name"
    assert not (path.parent / "nothing").exists()
    assert not store.replica.waits


def test_a_directory_does_not_wait(store: Any) -> None:
    store.execute(Mkdir("made"))
    hold(store, Mkdir("made"))
    assert (store.root / "made").is_dir()
    assert not store.replica.waits


def test_a_change_that_does_not_come_to_be_holds_a_reader_up_once(store: Any, path: Path) -> None:
    store.replica.patience = 1.0
    hold(store, Write("bench/same", b"never"))
    for _look in range(3):
        assert path.read_bytes() == b"old"
    assert len(store.replica.waits) == 1
    hold(store, Write("bench/same", b"nor this"))
    assert path.read_bytes() == b"old"
    assert len(store.replica.waits) == 2, "another change is another hope"


def test_a_change_that_is_refused_leaves_the_reader_what_is_there(store: Any, path: Path) -> None:
    hold(store, Write("bench/same", b"too late", absent=True))
    soon(store)
    assert path.read_bytes() == b"old"


def test_what_is_looked_for_is_the_whole_path_of_a_command() -> None:
    asked: list[bytes] = []

    def unapplied_with(needle: bytes) -> int:
        asked.append(needle)
        return 7

    waited: list[tuple[int, float]] = []

    def wait_applied(index: int, timeout_s: float) -> bool:
        waited.append((index, timeout_s))
        return False

    behind = [False]
    under_way = UnderWay(is_behind=lambda: behind[0], unapplied_with=unapplied_with, wait_applied=wait_applied)
    assert under_way.index_for(("a", "b")) == 0
    assert not asked, "a log that is applied is not looked through"
    behind[0] = True
    assert under_way.index_for(("a", "b")) == 7
    assert asked == [msgspec.msgpack.encode("a/b")]
    under_way.wait(7)
    assert waited == [(7, PATIENCE_S)]
    assert under_way.index_for(("a", "b")) == 0, "it was waited for in vain"


def test_no_more_than_a_few_readers_wait_and_never_in_the_writers_pool(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.touch()
    with device.open("r+b") as file:
        _few_wait(Session(file.fileno()))


def _few_wait(session: Session) -> None:
    call, release = wire.Call(wire.LOOKUP, 1, 1, 1, b""), threading.Event()

    def work() -> bytes:
        release.wait(10.0)
        return b""

    taken = [session.soon(call, work) for _ in range(LOOKERS + 2)]
    release.set()
    assert taken == [True] * LOOKERS + [False] * 2


def test_who_finds_the_file_deleted_is_not_waited_for(store: Any, path: Path) -> None:
    hold(store, Delete("bench/same"))
    soon(store)
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    assert not store.operations._cached._sent_back
