"""The store through a real FUSE mount (root and /dev/fuse): what editors, scripts and Proxmox VE's tools rely on.

Memory mapping is done in a child process: a page fault in this one would wait, holding the interpreter, for handlers that need
it.
"""

# ruff: noqa: PTH101, PTH102, PTH104, PTH115, PTH208, PTH211, PLW0108 - the system calls themselves are what is tested

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterfs.commands import Delete, Mkdir, Write
from clusterfs.mounting import is_mounted, mounts_at

MIB = 1 << 20


def put(path: Path, data: bytes = b"", flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC) -> None:
    descriptor = os.open(path, flags, 0o777)
    try:
        if data:
            os.write(descriptor, data)
    finally:
        os.close(descriptor)


def fails(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def mode(path: Path) -> str:
    return stat.filemode(path.lstat().st_mode)


def becomes(wanted: object, look: Callable[[], object]) -> None:
    """Names and attributes are taken back from the kernel a moment after a change elsewhere; contents need no moment."""
    for _look in range(2000):
        if look() == wanted:
            return
        time.sleep(0.001)
    assert look() == wanted


@pytest.fixture
def root(store: Any) -> Iterator[Path]:
    yield store.root


def test_modes_and_owner_follow_from_the_path(root: Path) -> None:
    (root / "d").mkdir(mode=0o700)
    for path in ("d/f", "priv/f", "nodes/n1/priv/f"):
        put(root / path, b"hello")
    expected = {
        "": "drwxr-xr-x",
        "d": "drwxr-xr-x",
        "d/f": "-rw-r-----",
        "priv": "drwx------",
        "priv/f": "-rw-------",
        "nodes/n1/priv": "drwx------",
        "nodes/n1/priv/f": "-rw-------",
        ".version": "-r--r-----",
        ".debug": "-rw-r-----",
        "local": "lrwxr-xr-x",
    }
    assert {path: mode(root / path) for path in expected} == expected
    status = (root / "d/f").stat()
    assert (status.st_uid, status.st_nlink, status.st_size) == (0, 1, 5)
    assert status.st_mtime_ns % 10**9 == 0
    assert status.st_atime == status.st_mtime == status.st_ctime
    assert (root / "d").stat().st_nlink == 2


def test_one_save_is_one_entry_of_the_log_and_nobody_sees_an_empty_file(store: Any) -> None:
    before = store.entries
    put(store.root / "f", b"one")
    assert store.entries == before + 1
    put(store.root / "f", b"two")
    assert store.entries == before + 2
    with (store.root / "f").open("r+b", buffering=0) as file:
        for number in range(50):
            file.write(b"%05d" % number)
    assert store.entries == before + 3
    subprocess.run(
        ["sh", "-c", 'echo shell > "$1/g"; (echo a; echo b) > "$1/h"', "sh", store.root], check=True, timeout=20
    )
    assert store.entries == before + 5
    contents = [write.content for write in writes(store)[-5:]]
    assert all(contents)
    assert (store.root / "h").read_text() == "a\nb\n"


def writes(store: Any) -> list[Write]:
    from clusterfs.commands import decode

    ops = [decode(entry).op for entry in store.replica.log]
    return [op for op in ops if isinstance(op, Write)]


def test_truncating_and_closing_is_one_entry_and_so_is_an_empty_new_file(store: Any) -> None:
    put(store.root / "f", b"content")
    before = store.entries
    subprocess.run(["sh", "-c", ': > "$1/f"; : > "$1/new"', "sh", store.root], check=True, timeout=20)
    assert (store.root / "f").read_bytes() == b""
    assert (store.root / "new").exists()
    assert store.entries == before + 2


def test_what_is_not_closed_yet_is_seen_by_its_writer_and_not_by_the_cluster(store: Any) -> None:
    path = store.root / "f"
    put(path, b"old")
    with path.open("r+b", buffering=0) as file:
        file.write(b"new and longer")
        assert os.pread(file.fileno(), 100, 0) == b"new and longer"
        assert path.read_bytes() == b"old"
        os.fsync(file.fileno())
        assert path.read_bytes() == b"new and longer"


def test_a_change_of_another_node_is_seen_at_once(store: Any) -> None:
    path = store.root / "f"
    assert not path.exists()
    store.execute(Write("f", b"1"))
    assert path.read_bytes() == b"1"
    store.execute(Write("f", b"longer"))
    assert path.read_bytes() == b"longer"
    becomes(6, lambda: path.stat().st_size)
    store.execute(Delete("f"))
    fails(errno.ENOENT, lambda: os.open(path, os.O_RDONLY))
    assert "f" not in os.listdir(store.root)
    becomes(False, path.exists)


def test_a_long_read_gets_one_version_from_its_first_byte_to_its_last(store: Any) -> None:
    store.execute(Write("f", b"a" * MIB))
    with (store.root / "f").open("rb", buffering=0) as file:
        first = file.read(4096)
        store.execute(Write("f", b"b" * MIB))
        rest = file.read(MIB)
        assert set(first + rest) == {ord("a")}
        file.seek(0)
        assert set(file.read(4096)) == {ord("a")}
    assert set((store.root / "f").read_bytes()) == {ord("b")}


def test_a_reader_at_the_end_of_one_version_does_not_go_on_in_the_next(store: Any) -> None:
    store.execute(Write("f", b"a" * 1000))
    with (store.root / "f").open("rb", buffering=0) as file:
        assert file.read(1000) == b"a" * 1000
        store.execute(Write("f", b"b" * 2000))
        assert file.read(1000) == b""
    assert (store.root / "f").read_bytes() == b"b" * 2000


def test_a_reader_that_waits_at_the_end_sees_the_file_grow(store: Any) -> None:
    store.execute(Write("log", b"one\n"))
    with (store.root / "log").open("rb", buffering=0) as file:
        assert file.read(100) == b"one\n"
        assert file.read(100) == b""
        store.execute(Write("log", b"one\ntwo\n"))
        becomes(b"two\n", lambda: file.read(100))
        assert os.fstat(file.fileno()).st_ino == (store.root / "log").stat().st_ino


def test_appends_from_two_nodes_to_one_file_are_both_kept(store: Any) -> None:
    store.execute(Write("log", b"start\n"))
    with (store.root / "log").open("ab", buffering=0) as file:
        file.write(b"mine\n")
        store.execute(Write("log", b"start\ntheirs\n"))
    assert (store.root / "log").read_bytes() == b"start\ntheirs\nmine\n"


def test_saving_a_file_that_another_node_deleted_reports_it(store: Any) -> None:
    store.execute(Write("f", b"x"))
    descriptor = os.open(store.root / "f", os.O_WRONLY)
    os.write(descriptor, b"y")
    store.execute(Delete("f"))
    fails(errno.ESTALE, lambda: os.close(descriptor))
    assert not (store.root / "f").exists()


def test_create_exclusively_is_decided_when_the_file_is_opened(store: Any) -> None:
    exclusive = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(store.root / "f", exclusive)
    assert writes(store)[-1].absent
    fails(errno.EEXIST, lambda: os.open(store.root / "f", exclusive))
    os.close(descriptor)


def test_one_of_many_racing_exclusive_creates_wins(store: Any) -> None:
    winners: list[int] = []

    def race(number: int) -> None:
        try:
            os.close(os.open(store.root / "race", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        winners.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(winners) == 1


def test_offsets_gaps_and_lengths(root: Path) -> None:
    path = root / "f"
    put(path, b"0123456789")
    os.truncate(path, 4)
    os.truncate(path, 8)
    assert path.read_bytes() == b"0123\0\0\0\0"
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, b"Z", 10)
    os.close(descriptor)
    assert path.read_bytes() == b"0123\0\0\0\0\0\0Z"
    put(path, b"a\n")
    put(path, b"b\n", os.O_WRONLY | os.O_APPEND)
    assert path.read_bytes() == b"a\nb\n"
    subprocess.run(["truncate", "-s", "100", root / "sparse"], check=True, timeout=20)
    assert (root / "sparse").stat().st_size == 100


def test_a_mebibyte_fits_and_a_byte_more_does_not(root: Path) -> None:
    put(root / "big", b"x" * MIB)
    assert (root / "big").stat().st_size == MIB
    with (root / "big2").open("wb", buffering=0) as file:
        assert file.write(b"x" * (MIB + 1)) == MIB
        fails(errno.EFBIG, lambda: file.write(b"x"))
    assert (root / "big2").stat().st_size == MIB
    fails(errno.EFBIG, lambda: os.truncate(root / "big", MIB + 1))


def test_an_empty_file_made_longer_is_readable_and_the_daemon_lives(root: Path) -> None:
    """This killed pmxcfs on every node that read the file."""
    put(root / "trap")
    os.truncate(root / "trap", 100)
    assert (root / "trap").read_bytes() == bytes(100)
    assert "trap" in os.listdir(root)


def test_a_failed_rename_over_an_empty_directory_loses_nothing(root: Path) -> None:
    """pmxcfs lost the target, and with a second mkdir its whole database."""
    (root / "t/src/sub").mkdir(parents=True)
    (root / "t/dst").mkdir()
    put(root / "t/dst/keep")
    fails(errno.ENOTEMPTY, lambda: os.rename(root / "t/src", root / "t/dst"))
    fails(errno.EEXIST, lambda: (root / "t/dst").mkdir())
    assert (root / "t/dst/keep").exists()
    assert (root / "t/src/sub").is_dir()


def test_a_write_at_four_gibibytes_does_not_wrap_to_the_start(root: Path) -> None:
    """pmxcfs overwrote the first byte on all nodes."""
    put(root / "w", b"abc")
    descriptor = os.open(root / "w", os.O_WRONLY)
    fails(errno.EFBIG, lambda: os.pwrite(descriptor, b"Z", 1 << 32))
    os.close(descriptor)
    assert (root / "w").read_bytes() == b"abc"


def test_renames(root: Path) -> None:
    put(root / "a", b"A")
    put(root / "b", b"B")
    os.rename(root / "a", root / "b")
    assert (root / "b").read_bytes() == b"A"
    fails(errno.ENOENT, lambda: os.rename(root / "a", root / "b"))
    (root / "full/x").mkdir(parents=True)
    (root / "empty").mkdir()
    fails(errno.EISDIR, lambda: os.rename(root / "b", root / "empty"))
    fails(errno.ENOTDIR, lambda: os.rename(root / "empty", root / "b"))
    fails(errno.ENOTEMPTY, lambda: os.rename(root / "empty", root / "full"))
    fails(errno.EINVAL, lambda: os.rename(root / "full", root / "full/x/y"))
    os.rename(root / "full", root / "empty")
    assert (root / "empty/x").is_dir()
    os.rename(root / "b", root / "empty/x/b")
    assert (root / "empty/x/b").read_bytes() == b"A"


def test_a_file_renamed_while_open_is_saved_under_its_new_name(root: Path) -> None:
    with (root / "tmp").open("wb", buffering=0) as file:
        file.write(b"one")
        os.rename(root / "tmp", root / "f")
        assert (root / "f").read_bytes() == b"one"
        file.write(b" two")
    assert (root / "f").read_bytes() == b"one two"
    assert not (root / "tmp").exists()


def test_an_unlinked_file_is_readable_by_its_opener_and_leaves_nothing_behind(store: Any) -> None:
    put(store.root / "f", b"data")
    with (store.root / "f").open("rb", buffering=0) as file:
        (store.root / "f").unlink()
        assert file.read() == b"data"
    assert not [name for name in os.listdir(store.root) if name.startswith(".fuse")]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda r: os.symlink("x", r / "s"), errno.ENOSYS),
        (lambda r: os.link(r / "f", r / "l"), errno.EPERM),
        (lambda r: os.mkfifo(r / "p"), errno.ENOSYS),
        (lambda r: socket.socket(socket.AF_UNIX).bind(str(r / "s")), errno.ENOSYS),
        (lambda r: os.setxattr(r / "f", "user.a", b"1"), errno.ENOTSUP),
        (lambda r: os.getxattr(r / "f", "user.a"), errno.ENOTSUP),
        (lambda r: os.open(r, os.O_RDWR | os.O_TMPFILE), errno.ENOTSUP),
        (lambda r: os.open(r / "d", os.O_WRONLY), errno.EISDIR),
        (lambda r: os.chmod(r / "f", 0o644), errno.EPERM),
        (lambda r: os.chown(r / "f", 1000, -1), errno.EPERM),
        (lambda r: os.utime(r, (5, 5)), errno.EACCES),
        (lambda r: os.utime(r / "none"), errno.ENOENT),
        (lambda r: (r / "d").mkdir(), errno.EEXIST),
        (lambda r: (r / "none/x").mkdir(), errno.ENOENT),
        (lambda r: (r / "f/x").mkdir(), errno.ENOTDIR),
        (lambda r: put(r / "none/x"), errno.ENOENT),
        (lambda r: (r / "none").unlink(), errno.ENOENT),
        (lambda r: (r / "d").unlink(), errno.EISDIR),
        (lambda r: (r / "f").rmdir(), errno.ENOTDIR),
        (lambda r: (r / "nodes/n1").rmdir(), errno.ENOTEMPTY),
        (lambda r: put(r / ("n" * 256)), errno.ENAMETOOLONG),
        (lambda r: os.mkdir(os.fsencode(r) + b"/\xff\xfe"), errno.EILSEQ),
        (lambda r: put(r / ".version", b"x", os.O_WRONLY), errno.EIO),
        (lambda r: (r / ".version").unlink(), errno.EACCES),
        (lambda r: os.rename(r / ".version", r / "d/v"), errno.EACCES),
        (lambda r: os.rename(r / "f", r / ".version"), errno.EACCES),
        (lambda r: (r / "local").unlink(), errno.EACCES),
        (lambda r: (r / "local").mkdir(), errno.EEXIST),
        (lambda r: put(r / ".debug", b"2\n", os.O_WRONLY), errno.EIO),
    ],
)
def test_what_is_refused_is_refused_with_pmxcfs_errno(root: Path, call: Callable[[Path], object], code: int) -> None:
    put(root / "f", b"x")
    (root / "d").mkdir()
    fails(code, lambda: call(root))
    assert (root / "f").read_bytes() == b"x"


def test_what_changes_nothing_or_stays_local_succeeds(root: Path) -> None:
    put(root / "f", b"hello")
    put(root / "priv/f")
    (root / "d").mkdir()
    os.chmod(root / "f", 0o640)
    os.chmod(root / "priv/f", 0o600)
    os.chmod(root / "d", 0o755)
    os.chown(root / "f", 0, (root / "f").stat().st_gid)
    os.mknod(root / "reg", stat.S_IFREG | 0o600)
    with (root / "f").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    descriptor = os.open(root / "f", os.O_RDWR)
    os.posix_fallocate(descriptor, 0, 4096)
    os.close(descriptor)
    assert (root / "f").stat().st_size == 4096
    assert os.statvfs(root).f_files == 262_144
    assert os.statvfs(root).f_blocks == 32_768
    program = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); "
        "print(mmap.mmap(fd, 5, mmap.MAP_PRIVATE, mmap.PROT_READ)[:5])"
    )
    mapped = subprocess.run([sys.executable, "-c", program, root / "f"], capture_output=True, check=True, timeout=20)
    assert mapped.stdout == b"b'hello'\n"


def test_times_can_be_set(root: Path) -> None:
    put(root / "f")
    os.utime(root / "f", (1, 1_000_000_001))
    assert (root / "f").stat().st_mtime == 1_000_000_001
    os.utime(root / "f", (0, 0))
    assert (root / "f").stat().st_mtime == 0
    subprocess.run(["touch", "-m", root / "f"], check=True, timeout=20)
    assert (root / "f").stat().st_mtime == 1_700_000_000
    subprocess.run(["touch", root / "new"], check=True, timeout=20)
    assert (root / "new").stat().st_size == 0


def test_odd_names_are_kept(root: Path) -> None:
    for name in ("a b\nä", 'q"\\', "n" * 255):
        put(root / name, name.encode())
        assert name in os.listdir(root)
        assert (root / name).read_bytes() == name.encode()


def test_a_vmid_exists_once(root: Path) -> None:
    (root / "nodes/n2/qemu-server").mkdir(parents=True)
    one, other, ct = root / "qemu-server/100.conf", root / "nodes/n2/qemu-server/100.conf", root / "lxc/100.conf"
    put(one, b"name: a\n")
    for taken in (other, ct):
        fails(errno.EEXIST, lambda taken=taken: put(taken, b""))  # type: ignore[misc]
        put(root / "tmp")
        fails(errno.EEXIST, lambda taken=taken: os.rename(root / "tmp", taken))  # type: ignore[misc]
    os.rename(one, other)
    assert other.read_bytes() == b"name: a\n"
    assert '"100": { "node": "n2", "type": "qemu"' in (root / ".vmlist").read_text()
    fails(errno.EEXIST, lambda: put(one, b""))


def test_a_guest_that_another_node_makes_while_a_file_is_open_wins(store: Any) -> None:
    store.execute(Mkdir("nodes/n2/lxc", parents=True))
    descriptor = os.open(store.root / "qemu-server/100.conf", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"mine")
    store.execute(Write("nodes/n2/lxc/100.conf", b"theirs"))
    fails(errno.EEXIST, lambda: os.close(descriptor))
    assert not (store.root / "qemu-server/100.conf").exists()


def test_a_lock_is_taken_once_renewed_by_its_node_and_broken_when_old(store: Any) -> None:
    lock = store.root / "priv/lock/x"
    lock.mkdir()
    fails(errno.EEXIST, lock.mkdir)
    fails(errno.EACCES, lambda: os.utime(lock, (0, 0)))
    fails(errno.EACCES, lambda: os.rename(lock, store.root / "priv/lock/y"))
    store.clock[0] += 119
    os.utime(lock)
    store.clock[0] += 119
    fails(errno.EACCES, lambda: os.utime(lock, (0, 0)))
    store.clock[0] += 2
    os.utime(lock, (0, 0))
    assert not lock.exists()
    lock.mkdir()
    lock.rmdir()


def test_a_lock_of_another_node_is_not_renewed_from_here(store: Any, uids: tuple[str, str, str]) -> None:
    from clusterfs.commands import Envelope, encode

    store.replica.propose(encode(Envelope(Mkdir("priv/lock/x"), node=uids[1])), deadline_s=1)
    fails(errno.EACCES, lambda: os.utime(store.root / "priv/lock/x"))
    (store.root / "priv/lock/x").rmdir()


def test_computed_files_and_links(root: Path) -> None:
    assert os.readlink(root / "local") == "nodes/n1"
    assert os.readlink(root / "qemu-server") == "nodes/n1/qemu-server"
    assert os.readlink(root / "lxc") == "nodes/n1/lxc"
    assert (root / ".vmlist").read_text() == '{\n"version": 0\n\n}\n'
    assert (root / ".members").stat().st_size == len((root / ".members").read_bytes())
    put(root / ".debug", b"1\n", os.O_WRONLY)
    assert (root / ".debug").read_bytes() == b"1\n"
    (root / "sub").mkdir()
    put(root / "sub/.version", b"x")
    assert (root / "sub/.version").read_bytes() == b"x"


def test_without_quorum_reads_go_on_and_every_change_is_denied(store: Any) -> None:
    root = store.root
    put(root / "f", b"x")
    (root / "d").mkdir()
    (root / "priv/lock/x").mkdir()
    half = os.open(root / "f", os.O_WRONLY)
    os.write(half, b"yy")
    store.replica.is_quorate = False
    changes: list[Callable[[], object]] = [
        lambda: put(root / "new"),
        lambda: put(root / "f", b"z"),
        lambda: os.truncate(root / "f", 0),
        lambda: (root / "e").mkdir(),
        lambda: (root / "f").unlink(),
        lambda: (root / "d").rmdir(),
        lambda: os.rename(root / "f", root / "g"),
        lambda: os.utime(root / "f"),
        lambda: os.utime(root / "priv/lock/x", (0, 0)),
        lambda: os.mknod(root / "reg", stat.S_IFREG | 0o600),
        lambda: os.close(half),
    ]
    for change in changes:
        fails(errno.EACCES, change)
    os.chmod(root / "f", 0o640)
    assert (root / "f").read_bytes() == b"x"
    assert [mode(root / path) for path in ("", "d", "f", "priv")] == [
        "drwxr-xr-x",
        "dr-xr-xr-x",
        "-r--r-----",
        "dr-x------",
    ]
    assert '"quorate": 0' in (root / ".members").read_text()
    store.replica.is_quorate = True
    put(root / "f", b"again")
    assert (root / "f").read_bytes() == b"again"


@pytest.mark.parametrize("is_quorate", [True, False])
def test_a_full_disk_is_what_every_change_is_told_of_whether_it_took_the_quorum_or_not(
    store: Any, is_quorate: bool
) -> None:
    root = store.root
    put(root / "f", b"x")
    half = os.open(root / "f", os.O_WRONLY)
    os.write(half, b"yy")
    store.replica.is_disk_full, store.replica.is_quorate = True, is_quorate
    changes: list[Callable[[], object]] = [
        lambda: put(root / "new"),
        lambda: put(root / "f", b"z"),
        lambda: (root / "e").mkdir(),
        lambda: (root / "f").unlink(),
        lambda: os.rename(root / "f", root / "g"),
        lambda: os.close(half),
    ]
    for change in changes:
        fails(errno.ENOSPC, change)
    assert (root / "f").read_bytes() == b"x"
    store.replica.is_disk_full, store.replica.is_quorate = False, True
    put(root / "f", b"again")
    assert (root / "f").read_bytes() == b"again"


def test_reads_go_on_while_a_write_waits_for_the_others(store: Any) -> None:
    put(store.root / "f", b"x")
    started, release = threading.Event(), threading.Event()
    apply_at_once = store.replica.propose

    def propose_slowly(entry: bytes, *, deadline_s: float) -> object:
        started.set()
        release.wait(20)
        return apply_at_once(entry, deadline_s=deadline_s)

    store.replica.propose = propose_slowly
    writer = threading.Thread(target=put, args=(store.root / "f", b"y"))
    writer.start()
    try:
        assert started.wait(10)
        assert (store.root / "f").read_bytes() == b"x"
        assert "f" in os.listdir(store.root)
    finally:
        release.set()
        writer.join(timeout=20)
    assert (store.root / "f").read_bytes() == b"y"


def test_a_write_that_gets_no_answer_ends_with_an_errno_at_its_deadline(store: Any) -> None:
    from kvorum.errors import OutcomeUnknown

    def never(_entry: bytes, *, deadline_s: float) -> object:
        raise OutcomeUnknown("no answer")

    store.proposer._clock = iter(range(0, 1000, 2)).__next__
    store.replica.propose = never
    fails(errno.ETIMEDOUT, lambda: put(store.root / "f", b"x"))
    del store.replica.propose


def test_mounts_are_found_in_mountinfo() -> None:
    text = (
        "22 1 0:20 / / rw - ext4 /dev/sda rw\n"
        "30 22 0:31 / /etc/kvorum rw,nosuid - fuse.kvorum kvorum rw,user_id=0\n"
        "31 22 0:32 / /mnt/a\\040b rw - tmpfs tmpfs rw\n"
        "broken\n"
    )
    assert mounts_at(Path("/etc/kvorum"), mountinfo=text) == ["fuse.kvorum"]
    assert mounts_at(Path("/mnt/a b"), mountinfo=text) == ["tmpfs"]
    assert mounts_at(Path("/nowhere"), mountinfo=text) == []


def test_unmounting_leaves_an_empty_directory(store: Any) -> None:
    put(store.root / "f")
    assert is_mounted(store.root)
    store.mounted.unmount()
    assert not is_mounted(store.root)
    assert os.listdir(store.root) == []


def test_a_broken_pipe_ends_no_process_that_has_unmounted(store: Any) -> None:
    """libfuse would leave SIGPIPE at its default."""
    store.mounted.unmount()
    status = Path("/proc/self/status").read_text()
    ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    assert ignored & 1 << (signal.SIGPIPE - 1)


def test_a_mount_in_use_is_unmounted_all_the_same(store: Any) -> None:
    put(store.root / "f", b"x")
    with (store.root / "f").open("rb"):
        store.mounted.unmount()
        assert not is_mounted(store.root)
