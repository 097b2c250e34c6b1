"""What the kernel keeps of the mount is fast, and never old, mixed or in anybody's way: caches, inotify, locks, other nodes.

A change "elsewhere" is one that does not come through the mount.
"""

# ruff: noqa: PTH104, PTH208 - system calls are what is tested

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterfs import fusewire
from clusterfs.commands import Delete, Mkdir, Move, Write
from clusterfs.tree import File, lookup

READS = int(os.environ.get("KVORUM_READS", "20000"))

IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x8, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_DELETE_SELF = 0x100, 0x200, 0x400
libc = ctypes.CDLL(None, use_errno=True)


def becomes(wanted: object, look: Callable[[], object]) -> None:
    for _look in range(2000):
        if look() == wanted:
            return
        time.sleep(0.001)
    assert look() == wanted


def content(store: Any, path: str) -> bytes | None:
    """What the store has, whatever the mount shows."""
    node = lookup(store.machine.state.root, tuple(path.split("/")))
    return node.content if isinstance(node, File) else None


class Watch:
    """An inotify descriptor on one path."""

    def __init__(self, path: Path, mask: int) -> None:
        self.descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert libc.inotify_add_watch(self.descriptor, os.fsencode(path), mask) >= 0

    def wait_for(self, *wanted: tuple[int, str]) -> None:
        """Returns when all of these have come, in whatever order and among whatever others."""
        seen: list[tuple[int, str]] = []
        end = time.monotonic() + 10
        while not set(wanted) <= set(seen):
            left = end - time.monotonic()
            assert left > 0, f"only {seen} of {wanted}"
            if select.select([self.descriptor], [], [], left)[0]:
                seen += self._read()

    def has_more(self) -> list[tuple[int, str]]:
        with contextlib.suppress(BlockingIOError):
            return self._read()
        return []

    def _read(self) -> list[tuple[int, str]]:
        data, at, found = os.read(self.descriptor, 65536), 0, []
        while at < len(data):
            _wd, mask, _cookie, size = struct.unpack_from("iIII", data, at)
            found.append((mask & 0xFFF, data[at + 16 : at + 16 + size].rstrip(b"\0").decode()))
            at += 16 + size
        return found

    def close(self) -> None:
        os.close(self.descriptor)


@pytest.fixture
def watch() -> Iterator[Callable[[Path, int], Watch]]:
    made: list[Watch] = []

    def make(path: Path, mask: int) -> Watch:
        made.append(Watch(path, mask))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_file_that_did_not_change_is_read_without_asking_for_its_bytes_again(store: Any) -> None:
    store.execute(Write("f", b"x" * 200))
    path = store.root / "f"
    asked: list[int] = []
    read = store.operations.handlers[fusewire.READ]
    store.operations.handlers[fusewire.READ] = lambda call: asked.append(call.node) or read(call)
    assert path.read_bytes() == b"x" * 200
    for _time in range(50):
        assert path.read_bytes() == b"x" * 200
    assert len(asked) == 1
    store.execute(Write("f", b"y" * 300))
    assert path.read_bytes() == b"y" * 300
    assert len(asked) == 2


def test_an_open_finds_the_newest_version_at_once_however_often_it_changes(store: Any) -> None:
    path = store.root / "f"
    for number in range(300):
        content = b"%d " % number * (number % 7 + 1)
        store.execute(Write("f", content))
        assert path.read_bytes() == content


def test_what_others_make_remove_and_move_is_seen_although_the_kernel_remembers(store: Any) -> None:
    store.execute(Mkdir("d"))
    store.execute(Write("d/a", b"a"))
    root = store.root
    assert (root / "d/a").read_bytes() == b"a"
    assert not (root / "d/b").exists()
    store.execute(Move("d/a", "d/b"))
    assert (root / "d/b").read_bytes() == b"a"
    becomes(False, (root / "d/a").exists)
    store.execute(Move("d", "e"))
    assert (root / "e/b").read_bytes() == b"a"
    becomes(False, (root / "d").exists)
    store.execute(Delete("e", recursive=True))
    becomes(False, (root / "e").exists)
    store.execute(Write("e", b"a file now"))
    assert (root / "e").read_bytes() == b"a file now"


def test_a_program_whose_directory_is_moved_elsewhere_goes_on_in_it(store: Any) -> None:
    store.execute(Write("d/f", b"x", parents=True))
    (store.root / "d/f").read_bytes()
    directory = os.open(store.root / "d", os.O_RDONLY)
    try:
        store.execute(Move("d", "e"))
        becomes(False, (store.root / "d").exists)
        (store.root / "e/f").write_bytes(b"y")
        descriptor = os.open("f", os.O_RDONLY, dir_fd=directory)
        assert os.read(descriptor, 10) == b"y"
        os.close(descriptor)
    finally:
        os.close(directory)


def test_times_set_elsewhere_are_shown_and_keep_the_content_in_the_kernel(store: Any) -> None:
    from clusterfs.commands import Touch

    store.execute(Write("f", b"x"))
    before = (store.root / "f").stat()
    store.execute(Touch("f", 1_000_000))
    becomes(1_000_000, lambda: (store.root / "f").stat().st_mtime)
    assert (store.root / "f").stat().st_ino == before.st_ino


def test_the_number_of_a_file_stays_when_it_is_rewritten_and_differs_when_it_is_replaced(store: Any) -> None:
    path = store.root / "f"
    with path.open("wb") as file:
        mine = os.fstat(file.fileno()).st_ino
        file.write(b"one")
    assert path.stat().st_ino == mine
    path.write_bytes(b"two")
    assert path.stat().st_ino == mine
    store.execute(Write("f", b"three"))
    assert path.read_bytes() == b"three"
    becomes(5, lambda: path.stat().st_size)
    assert path.stat().st_ino == mine
    (store.root / "g").write_bytes(b"new")
    os.rename(store.root / "g", path)
    becomes(3, lambda: path.stat().st_size)
    assert path.stat().st_ino != mine


def test_flock_holds_between_writers_of_one_file(store: Any) -> None:
    store.execute(Write("lock", b""))
    with (store.root / "lock").open("ab") as one, (store.root / "lock").open("ab") as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_descriptor_opened_again_through_proc_works(store: Any) -> None:
    store.execute(Write("f", b"one"))
    path = store.root / "f"
    with path.open("rb", buffering=0) as file:
        store.execute(Write("f", b"other"))
        becomes(5, lambda: path.stat().st_size)
        assert Path(f"/proc/self/fd/{file.fileno()}").read_bytes() == b"other"
    subprocess.run(["sh", "-c", "echo through > /dev/stdout", "sh"], stdout=path.open("wb"), check=True, timeout=20)
    assert path.read_bytes() == b"through\n"


def test_no_reader_sees_an_empty_file_or_a_mix_while_others_overwrite_it(store: Any) -> None:
    """Lengths and patterns differ; one writer is on this node (truncating, or in place), one elsewhere.

    KVORUM_READS=1000000 reads as often as the promise says.
    """
    path = store.root / "f"
    store.execute(Write("f", b"0" * 100))
    stop = threading.Event()

    def content(number: int) -> bytes:
        return bytes([65 + number % 26]) * (1 + number * 7919 % 9000)

    def elsewhere() -> None:
        for number in range(1 << 30):
            if stop.wait(0.001):
                return
            store.execute(Write("f", content(number)))

    def here() -> None:
        for number in range(1 << 30):
            if stop.wait(0.002):
                return
            data = content(number * 3 + 1)
            if number % 2:
                path.write_bytes(data)
            else:
                with path.open("r+b", buffering=0) as file:
                    file.write(data)
                    file.truncate(len(data))

    writers = [threading.Thread(target=elsewhere), threading.Thread(target=here)]
    for writer in writers:
        writer.start()
    program = (
        "import os, sys\n"
        "kinds, sizes = set(), set()\n"
        "for number in range(int(sys.argv[2])):\n"
        "    descriptor = os.open(sys.argv[1], os.O_RDONLY)\n"
        "    chunk = os.read(descriptor, 4096)\n"
        "    data = chunk\n"
        "    while chunk:\n"
        "        chunk = os.read(descriptor, 4096)\n"
        "        data += chunk\n"
        "    os.close(descriptor)\n"
        "    assert data, f'empty at read {number}'\n"
        "    assert data == data[:1] * len(data), f'a mix at read {number}: {sorted(set(data))}'\n"
        "    kinds.add(data[:1]); sizes.add(len(data))\n"
        "print(len(kinds), len(sizes))\n"
    )
    try:
        readers = [
            subprocess.Popen([sys.executable, "-c", program, str(path), str(READS // 2)], stdout=subprocess.PIPE)
            for _number in range(2)
        ]
        for reader in readers:
            out, _err = reader.communicate(timeout=60 + READS / 1000)
            assert reader.returncode == 0
            assert int(out.split()[1]) > 5
    finally:
        stop.set()
        for writer in writers:
            writer.join(timeout=20)


def test_a_program_that_is_started_between_two_writes_commits_nothing_by_closing_what_it_inherited(store: Any) -> None:
    store.execute(Write("a", b"whole"))
    with (store.root / "a").open("r+b", buffering=0) as file:
        file.truncate(0)
        subprocess.run(["true"], check=True)
        assert content(store, "a") == b"whole", "the fork's close is not the writer's"
        file.write(b"half")
        subprocess.run(["true"], check=True)
        assert content(store, "a") == b"whole"
        file.write(b" and half")
    assert content(store, "a") == b"half and half"


def test_what_a_child_wrote_is_committed_by_who_closes_last(store: Any) -> None:
    with (store.root / "a").open("wb") as file:
        subprocess.run(["echo", "from a child"], stdout=file, check=True)
    assert content(store, "a") == b"from a child\n"
    # The opener goes first: its end commits what is there, the child's what it has written by then.
    script = f"exec 9> {store.root / 'b'}; (sleep 0.3; echo late >&9) & echo early >&9"
    subprocess.run(["sh", "-c", script], check=True)
    assert content(store, "b").startswith(b"early\n")
    becomes(b"early\nlate\n", lambda: content(store, "b"))


def test_a_reader_who_waits_for_more_never_sees_bytes_that_nobody_wrote(store: Any) -> None:
    """The size must not be known before the page that ends with the former version is gone."""
    path = store.root / "log"
    lines = b""
    store.execute(Write("log", b"begin\n"))
    with path.open("rb", buffering=0) as file:
        got = file.read(100)
        for number in range(300):
            lines += b"line %d of many\n" % number
            store.execute(Write("log", b"begin\n" + lines))
            got += file.read(1 << 20)
            assert b"\0" not in got
        becomes(b"begin\n" + lines, lambda: grow(file))


def grow(file: Any) -> bytes:
    file.read(1 << 20)
    return bytes(os.pread(file.fileno(), 1 << 20, 0))


def test_watchers_of_a_directory_learn_what_others_do_in_it(store: Any, watch: Callable[[Path, int], Watch]) -> None:
    store.execute(Mkdir("d"))
    wanted = IN_CREATE | IN_DELETE | IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO
    watcher = watch(store.root / "d", wanted)
    store.execute(Write("d/f", b"1"))
    watcher.wait_for((IN_CREATE, "f"), (IN_CLOSE_WRITE, "f"))
    store.execute(Write("d/f", b"22"))
    watcher.wait_for((IN_MODIFY, "f"), (IN_CLOSE_WRITE, "f"))
    store.execute(Move("d/f", "d/g"))
    watcher.wait_for((IN_MOVED_FROM, "f"), (IN_MOVED_TO, "g"))
    store.execute(Mkdir("d/sub"))
    watcher.wait_for((IN_CREATE, "sub"))
    (store.root / "d/sub").stat()
    store.execute(Delete("d/sub"))
    store.execute(Delete("d/g"))
    watcher.wait_for((IN_DELETE, "sub"), (IN_DELETE, "g"))
    becomes([], lambda: os.listdir(store.root / "d"))


def test_repeating_a_change_for_watchers_changes_nothing(store: Any, watch: Callable[[Path, int], Watch]) -> None:
    watcher = watch(store.root, IN_CREATE | IN_DELETE | IN_MODIFY)
    store.execute(Write("f", b"kept"))
    watcher.wait_for((IN_CREATE, "f"))
    entries = store.entries
    store.execute(Write("f", b"kept as well"))
    watcher.wait_for((IN_MODIFY, "f"))
    assert store.entries == entries + 1
    assert (store.root / "f").read_bytes() == b"kept as well"
    assert (store.root / "f").stat().st_size == 12


def test_a_change_through_the_mount_is_told_once(store: Any, watch: Callable[[Path, int], Watch]) -> None:
    watcher = watch(store.root, IN_CREATE | IN_DELETE)
    (store.root / "here").write_bytes(b"x")
    (store.root / "here").unlink()
    store.execute(Write("elsewhere", b"x"))
    watcher.wait_for((IN_CREATE, "elsewhere"))
    (store.root / "last").write_bytes(b"")
    watcher.wait_for((IN_CREATE, "last"))
    assert watcher.has_more() == []


def test_who_watches_a_file_learns_that_it_has_been_replaced(store: Any, watch: Callable[[Path, int], Watch]) -> None:
    store.execute(Write("f", b"1"))
    watcher = watch(store.root / "f", IN_DELETE_SELF)
    store.execute(Write("f", b"22"))
    watcher.wait_for((IN_DELETE_SELF, ""))
    assert (store.root / "f").read_bytes() == b"22"


def test_directories_that_wait_for_a_change_hold_up_no_reader(store: Any) -> None:
    """While a mkdir waits the kernel holds its directory: notices there must wait apart from everything else."""
    store.execute(Write("d/f", b"x", parents=True))
    store.execute(Write("other", b"x"))
    (store.root / "d/f").read_bytes()
    started, release = threading.Event(), threading.Event()
    apply_at_once = store.replica.propose

    def propose_slowly(entry: bytes, *, deadline_s: float) -> object:
        if b"slow" in entry:
            started.set()
            release.wait(20)
        return apply_at_once(entry, deadline_s=deadline_s)

    store.replica.propose = propose_slowly
    maker = threading.Thread(target=os.mkdir, args=(store.root / "d/slow",))
    maker.start()
    try:
        assert started.wait(10)
        store.execute(Write("d/f", b"changed meanwhile"))
        store.execute(Write("other", b"changed as well"))
        assert (store.root / "other").read_bytes() == b"changed as well"
        assert (store.root / "other").stat().st_size in (1, 15)
        (store.root / "other").write_bytes(b"written")
        assert (store.root / "other").read_bytes() == b"written"
    finally:
        release.set()
        maker.join(timeout=20)
    assert (store.root / "d/f").read_bytes() == b"changed meanwhile"


def test_truncating_syncing_and_touching_by_name_do_not_wait_for_themselves(store: Any) -> None:
    """The kernel holds the inode's lock then, and a notice about that name would wait for it."""
    path = store.root / "f"
    for number in range(50):
        path.write_bytes(b"x" * 100)
        path.read_bytes()
        os.truncate(path, number)
        assert path.stat().st_size == number
        with path.open("ab", buffering=0) as file:
            file.write(b"y")
            path.read_bytes()
            os.fsync(file.fileno())
        assert len(path.read_bytes()) == number + 1
        os.utime(path, (5, 5))
        assert path.stat().st_mtime == 5
