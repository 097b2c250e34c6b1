"""The tools for a stopped node, on real directories: they tell the truth, change nothing, and stay off a daemon's data."""

import io
import json
import stat
import tarfile
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clusterfs import offline, seed
from clusterfs.commands import Delete, Envelope, MemberPut, Op, Write, encode
from clusterfs.daemon import Daemon, Places
from clusterfs.machine import StoreMachine
from clusterfs.offline_cli import dump, export_tree, import_tree, verify
from clusterfs.raft import Address, StorageDamaged, membership
from clusterfs.raft.core import MEMBERSHIP, NO_OP, REGULAR
from clusterfs.raft.files import LocalFiles
from clusterfs.raft.journal import FileLog
from clusterfs.raft.membership import Change, Configuration
from clusterfs.raft.snapshot import Point, SnapshotStore
from kvorum.errors import AlreadyExists, InvalidInput, KvorumError, NotFound, Refused
from kvorum.node import Identity, save_identity

UID = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"
OPS: list[Op] = [
    MemberPut(UID, "n1", "10.0.0.1"),
    Write("storage.cfg", b"dir: local\n"),
    Write("priv/token.cfg", b"secret\n", parents=True),
    Write("nodes/n1/qemu-server/100.conf", b"memory: 512\n"),
    Write("gone", b"x"),
    Delete("gone"),
]


def node(state_dir: Path) -> Path:
    state_dir.mkdir()
    identity = Identity(uid=UID, name="n1", address="10.0.0.1", cluster_name="home")
    save_identity(identity, state_dir / "node.json")
    return state_dir


def stored(state_dir: Path, *, voters: tuple[str, ...] = (UID,), committed: int | None = None, cut: int = 0) -> Path:
    """As a replica leaves it: a founder's configuration, a leader's first entry, commands; with `cut`, a snapshot there."""
    node(state_dir)
    raft = state_dir / "clusterfs" / "raft"
    raft.mkdir(parents=True)
    log = FileLog(LocalFiles(raft), uid=UID)
    log.setCurrentTerm(1, UID)
    machine = StoreMachine()
    for uid in voters:
        log.add(MEMBERSHIP + membership.encode(Change("add", uid, "10.0.0.1", 5405)), log.last_index + 1, 0)
    log.add(NO_OP, log.last_index + 1, 1)
    for seq, op in enumerate(OPS, 1):
        index = log.last_index + 1
        entry = encode(Envelope(op, client="c", seq=seq, author="root@pam", reason="a test", time_ms=5000 * seq))
        log.add(REGULAR + entry, index, 1)
        if not cut or index <= cut:
            machine.apply(index, entry)
    log.sync()
    log.setRaftCommitIndex(committed or log.last_index)
    if cut:
        snapshots = SnapshotStore(LocalFiles(raft))
        configuration = Configuration({uid: Address("10.0.0.1", 5405) for uid in voters})
        snapshots.write(Point(cut, 1, configuration), machine.snapshot()())
        snapshots.adopt_written()
        log.compact(cut)
    log.close()
    return state_dir


def run(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_verify_prints_the_same_digest_wherever_the_snapshot_lies(tmp_path: Path) -> None:
    whole, cut = stored(tmp_path / "a"), stored(tmp_path / "b", cut=6)
    before = files_below(whole)
    reports = [json.loads(run(verify, "--state-dir", where, "-o", "json").stdout) for where in (whole, cut)]
    assert reports[0]["digest"] == reports[1]["digest"]
    assert (reports[0]["index"], reports[1]["snapshot_index"]) == (8, 6)
    assert (reports[0]["members"], reports[0]["voters"]) == ("n1", UID)
    assert files_below(whole) == {**before, "clusterfs.lock": b""}, "nothing has changed"
    assert "digest" in run(verify, "--state-dir", whole).stdout


def test_verify_finds_damage_in_the_log_the_snapshot_and_the_state(tmp_path: Path) -> None:
    state_dir = stored(tmp_path / "a", cut=6)
    raft = state_dir / "clusterfs" / "raft"
    for path in (raft / "snapshot", next(raft.glob("log-*"))):
        good = path.read_bytes()
        data = bytearray(good)
        data[len(data.rstrip(b"\0")) // 2] ^= 1
        path.write_bytes(data)
        result = run(verify, "--state-dir", state_dir)
        assert isinstance(result.exception, StorageDamaged) and result.exception.remedy
        path.write_bytes(good)
    snapshots = SnapshotStore(LocalFiles(raft))
    snapshots.write(Point(6, 1, Configuration({UID: Address("10.0.0.1", 5405)})), [b"a good checksum over nonsense"])
    snapshots.adopt_written()
    with pytest.raises(StorageDamaged), offline.held(state_dir) as data_dir:
        offline.load(data_dir)


def test_nothing_is_done_while_the_daemon_runs_or_where_there_is_no_store(tmp_path: Path) -> None:
    state_dir = stored(tmp_path / "a")
    daemon = Daemon(Places(state=state_dir, mount=tmp_path / "mnt"), make_replica=lambda **_given: None)  # type: ignore[arg-type, return-value]
    daemon.lock()
    (tmp_path / "source").mkdir()
    for command, *rest in ((verify,), (dump,), (export_tree, tmp_path / "out"), (import_tree, tmp_path / "source")):
        result = run(command, "--state-dir", state_dir, *rest)
        assert isinstance(result.exception, Refused) and "stop it first" in result.exception.remedy
    for missing in (tmp_path / "nowhere", node(tmp_path / "fresh")):
        result = run(verify, "--state-dir", missing)
        assert isinstance(result.exception, NotFound) and "--state-dir" in result.exception.remedy


def test_dump_is_json_lines_without_secrets(tmp_path: Path) -> None:
    state_dir = stored(tmp_path / "a")
    lines = [json.loads(line) for line in run(dump, "--state-dir", state_dir).stdout.splitlines()]
    assert lines[0]["kind"] == "head" and lines[0]["uid"] == UID
    assert {"vote", "commit", "entry"} <= {line["kind"] for line in lines}
    entries = [line for line in lines if line["kind"] == "entry"]
    assert [entry["type"] for entry in entries] == ["membership", "nothing", *["command"] * 6]
    assert entries[4]["op"]["path"] == "priv/token.cfg" and entries[4]["op"]["content"]["bytes"] == 7
    assert entries[4]["author"] == "root@pam"
    ranged = run(dump, "--state-dir", state_dir, "--from", 4, "--to", 5, "--content").stdout
    assert [json.loads(line)["index"] for line in ranged.splitlines()] == [4, 5]
    assert json.loads(ranged.splitlines()[1])["op"]["content"] == "c2VjcmV0Cg=="


def test_export_writes_the_tree_with_its_modes_and_times(tmp_path: Path) -> None:
    state_dir, out = stored(tmp_path / "a", cut=6), tmp_path / "out"
    result = run(export_tree, "--state-dir", state_dir, out)
    assert result.exit_code == 0 and "entries as of index 8" in result.stderr
    assert files_below(out) == {
        "storage.cfg": b"dir: local\n",
        "priv/token.cfg": b"secret\n",
        "nodes/n1/qemu-server/100.conf": b"memory: 512\n",
    }
    modes = {path: stat.S_IMODE((out / path).stat().st_mode) for path in ("storage.cfg", "priv/token.cfg", "priv")}
    assert modes == {"storage.cfg": 0o640, "priv/token.cfg": 0o600, "priv": 0o700}
    assert (out / "storage.cfg").stat().st_mtime == 10
    again = run(export_tree, "--state-dir", state_dir, out)
    assert isinstance(again.exception, Refused), "it never writes into what is there"


def test_export_makes_an_archive_of_the_same(tmp_path: Path) -> None:
    result = run(export_tree, "--state-dir", stored(tmp_path / "a"), "-")
    with tarfile.open(fileobj=io.BytesIO(result.stdout_bytes)) as archive:
        token = archive.getmember("priv/token.cfg")
        content = archive.extractfile(token)
        assert content is not None and content.read() == b"secret\n"
        assert (token.mode, token.mtime) == (0o600, 15)
        assert archive.getmember("nodes/n1").isdir()


def test_what_is_not_known_to_be_committed_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    state_dir = stored(tmp_path / "a", voters=(UID, OTHER), committed=5)
    result = run(export_tree, "--state-dir", state_dir, tmp_path / "known")
    assert "--all" in result.stderr
    assert not (tmp_path / "known" / "nodes" / "n1" / "qemu-server" / "100.conf").exists()
    run(export_tree, "--state-dir", state_dir, "--all", tmp_path / "all")
    assert (tmp_path / "all" / "nodes" / "n1" / "qemu-server" / "100.conf").exists()
    alone = stored(tmp_path / "b", committed=5)
    with offline.held(alone) as data:
        assert offline.load(data).index == 8, "who is alone decides alone"


def test_import_makes_a_store_that_exports_the_same(tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    run(export_tree, "--state-dir", stored(tmp_path / "a"), out)
    (out / "priv" / "lock" / "old").mkdir(parents=True)
    (out / ".version").write_text("{}")
    (out / "local").symlink_to("nodes/n1")
    state_dir = node(tmp_path / "b")
    result = run(import_tree, "--state-dir", state_dir, out)
    assert result.exit_code == 0, result.exception
    run(export_tree, "--state-dir", state_dir, again)
    expected = files_below(out)
    del expected[".version"]
    assert files_below(again) == expected
    assert (again / "storage.cfg").stat().st_mtime == 10
    assert not (again / "priv" / "lock" / "old").exists()
    kept = seed.load(state_dir / "clusterfs")
    assert kept is not None and not kept.joining and [member.uid for member in kept.members] == [UID]
    report = json.loads(run(verify, "--state-dir", state_dir, "-o", "json").stdout)
    assert (report["voters"], report["members"], report["not_known_committed"]) == (UID, "n1", 0)
    refused = run(import_tree, "--state-dir", state_dir, out)
    assert isinstance(refused.exception, Refused) and "aside" in refused.exception.remedy


def test_import_refuses_what_the_store_would_and_leaves_nothing(tmp_path: Path) -> None:
    state_dir, source = node(tmp_path / "b"), tmp_path / "source"
    (source / "nodes" / "n1" / "qemu-server").mkdir(parents=True)
    (source / "nodes" / "n2" / "lxc").mkdir(parents=True)
    for path in ("n1/qemu-server/100.conf", "n2/lxc/100.conf"):
        (source / "nodes" / path).write_text("x")
    twice = run(import_tree, "--state-dir", state_dir, source)
    assert isinstance(twice.exception, AlreadyExists) and "100" in twice.exception.message
    (source / "nodes" / "n2" / "lxc" / "100.conf").unlink()
    (source / "link").symlink_to("/etc/shadow")
    assert isinstance(run(import_tree, "--state-dir", state_dir, source).exception, InvalidInput)
    (source / "link").unlink()
    (source / "large").write_bytes(bytes(2**20 + 1))
    assert isinstance(run(import_tree, "--state-dir", state_dir, source).exception, KvorumError)
    assert {path.name for path in state_dir.iterdir()} == {"node.json", "clusterfs.lock"}


def test_the_command_line_finds_them_by_their_names() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["kvorum.store_commands"]
    for name, target in points.items():
        module, _, attribute = target.partition(":")
        assert getattr(import_module(module), attribute).name == name
    assert set(points) == {"verify", "dump", "export", "import"}
