"""`.history` on a real mount: what find, tar, cat and editors meet there."""

# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH116, PTH208, PTH211 - the system calls themselves are what is tested

import errno
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs.commands import Configure, Delete, Mkdir, Move, Write
from clusterfs.mounting import group_id

STAMP = "20231114T221320Z"


def fails(codes: set[int], call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno in codes, caught.value


def run(*words: object) -> str:
    command = [str(word) for word in words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def told(store: Any) -> Path:
    """A store with a past: d/f has two versions, d/gone one, priv/key one. Returns its `.history`."""
    store.execute(Mkdir("d"))
    store.execute(Write("d/f", b"one\n"))
    store.execute(Write("d/f", b"two\n"))
    store.execute(Write("d/gone", b"was here\n"))
    store.execute(Delete("d/gone"))
    store.execute(Write("priv/key", b"secret\n"))
    return Path(store.root / ".history")


def versions(directory: Path) -> list[Path]:
    return sorted(directory.iterdir(), key=lambda path: int(path.name.partition("-")[0]))


def test_the_past_is_listed_and_read(store: Any) -> None:
    past = told(store)
    assert ".history" not in os.listdir(store.root), "who walks the mount does not walk its past"
    assert {"d", "priv", "nodes"} <= set(os.listdir(past))
    assert sorted(os.listdir(past / "d")) == ["f", "gone"]
    found = versions(past / "d/f")
    assert [path.read_bytes() for path in found] == [b"one\n", b"two\n"]
    assert all(path.name.endswith(f"-{STAMP}") for path in found)
    assert [path.read_bytes() for path in versions(past / "d/gone")] == [b"was here\n"]
    status = found[0].stat()
    assert (status.st_size, status.st_mtime, status.st_uid, status.st_gid) == (4, 1_700_000_000, 0, group_id())
    assert not (past / "none").exists()
    assert not (past / ".history").exists()
    fails({errno.ENOENT}, lambda: os.stat(past / "d/f/1-20000101T000000Z"))
    fails({errno.ENOENT}, lambda: os.stat(os.fsencode(past) + b"/\xff"))
    fails({errno.ENOTDIR}, lambda: os.stat(found[0] / "x"))


def test_a_change_is_in_the_past_as_soon_as_it_is_done(store: Any) -> None:
    past = told(store)
    for number in range(20):
        store.execute(Write("d/f", b"%d" % number))
        assert versions(past / "d/f")[-1].read_bytes() == b"%d" % number
    (store.root / "d/f").write_bytes(b"by the mount")
    assert versions(past / "d/f")[-1].read_bytes() == b"by the mount"
    os.rename(store.root / "d", store.root / "e")
    assert versions(past / "e/f")[0].read_bytes() == b"one\n"
    assert sorted(os.listdir(past / "d")) == ["f", "gone"]


def test_an_open_version_is_read_to_its_end_when_it_is_forgotten(store: Any) -> None:
    past = told(store)
    path = versions(past / "d/f")[0]
    with path.open("rb", buffering=0) as file:
        assert file.read(2) == b"on"
        store.execute(Configure(history_changes=0))
        assert file.read() == b"e\n"
        assert not path.exists()
        fails({errno.ENOENT, errno.ESTALE}, path.read_bytes)
    assert os.listdir(past / "d") == ["f"]
    assert [path.read_bytes() for path in versions(past / "d/f")] == [b"two\n"]


def test_modes_let_nobody_write_and_only_root_see_what_is_private(store: Any) -> None:
    past = told(store)
    store.execute(Move("priv/key", "d/key"))
    by_path = {
        path: stat.filemode((past / path).lstat().st_mode) for path in ("", "d", "d/f", "priv", "priv/key", "nodes")
    }
    assert by_path == {
        "": "dr-xr-xr-x",
        "d": "dr-xr-xr-x",
        "d/f": "dr-xr-xr-x",
        "priv": "dr-x------",
        "priv/key": "dr-x------",
        "nodes": "dr-xr-xr-x",
    }
    assert [stat.filemode(path.stat().st_mode) for path in versions(past / "d/f")] == ["-r--r-----"] * 2
    assert [stat.filemode(path.stat().st_mode) for path in versions(past / "d/key")] == ["-r--------", "-r--r-----"]


def test_everybody_lists_and_nobody_but_root_and_its_group_reads(store: Any) -> None:
    past = told(store)
    files = [path.relative_to(past) for path in (*versions(past / "d/f"), *versions(past / "priv/key"))]

    def as_nobody(*words: object) -> subprocess.CompletedProcess[bytes]:
        command = [str(word) for word in words]
        # The working directory is entered before the user changes, so the test's own directories may stay closed.
        return subprocess.run(
            command, cwd=past, capture_output=True, check=False, timeout=60, user=65534, group=65534, extra_groups=[]
        )

    listed = as_nobody("find", ".").stdout.decode()
    assert f"./{files[0]}\n" in listed
    assert "key" not in listed
    read = as_nobody("cat", *files)
    assert (read.stdout, read.returncode) == (b"", 1)


def test_a_version_whose_name_the_tree_takes_becomes_a_directory(store: Any) -> None:
    past = told(store)
    version = versions(past / "d/gone")[0]
    with version.open("rb") as file:
        store.execute(Mkdir(f"d/gone/{version.name}", parents=True))
        assert version.is_dir()
        assert os.listdir(version) == []
        assert file.read() == b"was here\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda p, v: os.open(v, os.O_WRONLY),
        lambda p, v: os.open(v, os.O_RDWR),
        lambda p, v: os.open(v, os.O_RDONLY | os.O_TRUNC),
        lambda p, v: os.open(p / "d/f/new", os.O_WRONLY | os.O_CREAT),
        lambda p, v: os.open(p / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        lambda p, v: os.mknod(p / "d/node", stat.S_IFREG | 0o600),
        lambda p, v: os.mkdir(p / "new"),
        lambda p, v: os.mkdir(p / "d/new"),
        lambda p, v: os.rmdir(p / "d"),
        lambda p, v: os.rmdir(p),
        lambda p, v: os.unlink(v),
        lambda p, v: os.truncate(v, 0),
        lambda p, v: os.utime(v),
        lambda p, v: os.utime(p),
        lambda p, v: os.utime(p / "d", (0, 0)),
        lambda p, v: os.chmod(v, 0o640),
        lambda p, v: os.chmod(p, 0o755),
        lambda p, v: os.chown(v, 0, 0),
        lambda p, v: os.rename(v, p / "d/f/other"),
        lambda p, v: os.rename(v, p.parent / "taken"),
        lambda p, v: os.rename(p, p.parent / "other"),
        lambda p, v: os.rename(p.parent / "d", p / "d2"),
        lambda p, v: os.rename(p.parent / "d/f", v),
        lambda p, v: os.rename(p.parent / "nodes/n1", p),
        lambda p, v: os.link(p.parent / "d/f", p / "d/link"),
        lambda p, v: os.symlink("target", p / "d/link"),
    ],
)
def test_every_change_is_refused(store: Any, change: Callable[[Path, Path], object]) -> None:
    past = told(store)
    before = store.machine.state.root
    version = versions(past / "d/f")[0]
    fails({errno.EROFS, errno.EACCES}, lambda: change(past, version))
    assert version.read_bytes() == b"one\n"
    assert (store.root / "d/f").read_bytes() == b"two\n"
    assert store.machine.state.root is before


def test_programs_walk_it_and_come_to_an_end(store: Any, tmp_path: Path) -> None:
    past = told(store)
    for number in range(300):
        store.execute(Write(f"d/many-{number}", b"%d" % number))
    found = run("find", past, "-type", "f").splitlines()
    assert len([line for line in found if "/many-" in line]) == 300
    assert f"{past}/d/gone" in run("find", past, "-type", "d").splitlines()
    assert not [line for line in run("find", past).splitlines() if line.count(".history") > 1]
    assert not [line for line in run("find", store.root).splitlines() if ".history" in line]
    assert "many-299" in run("ls", "-lR", past)
    archive = tmp_path / "past.tar"
    run("tar", "-C", store.root, "-cf", archive, ".history")
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar.getmembers() if member.isfile()}
        assert len(members) == len(found)
        gone = next(member for name, member in members.items() if "/d/gone/" in name)
        content = tar.extractfile(gone)
        assert content is not None and content.read() == b"was here\n"
    one, two = versions(past / "d/f")
    assert run("cat", one, two) == "one\ntwo\n"
    assert subprocess.run(["diff", one, two], capture_output=True, check=False, timeout=60).returncode == 1
    assert run("diff", two, store.root / "d/f") == ""
    run("cp", "-p", one, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"one\n"
    run("cp", one, store.root / "d/f")
    assert (store.root / "d/f").read_bytes() == b"one\n"


def test_a_directory_of_many_names_is_listed_whole(store: Any) -> None:
    past = told(store)
    for number in range(1500):
        store.execute(Write("d/f", b"%d" % number))
    found = versions(past / "d/f")
    assert len(found) == 1502
    assert found[-1].read_bytes() == b"1499"


def test_the_past_is_read_without_quorum(store: Any) -> None:
    past = told(store)
    store.replica.is_quorate = False
    assert [path.read_bytes() for path in versions(past / "d/f")] == [b"one\n", b"two\n"]
    assert stat.filemode(past.stat().st_mode) == "dr-xr-xr-x"


def test_working_in_it_keeps_its_place(store: Any) -> None:
    past = told(store)
    where = run("sh", "-c", 'cd "$1" && /bin/pwd && cat ../gone/*', "sh", past / "d/f")
    assert where == f"{past}/d/f\nwas here\n"
    assert (past / "d").stat().st_ino == next(e.inode() for e in os.scandir(past) if e.name == "d")
