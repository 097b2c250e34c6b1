"""The data of a node whose daemon does not run: look at it, check it, take the tree out, put a tree in.

For the day when a cluster does not come up. Reading changes nothing on disk, and everything refuses while the daemon holds
its lock. The commands are in `clusterfs.offline_cli`; what lies on disk is `clusterfs.raft`'s and `clusterfs.snapshot`'s.
"""

import contextlib
import fcntl
import hashlib
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import msgspec

from clusterfs import rules, seed, snapshot
from clusterfs.commands import Envelope, Malformed, MemberPut, Mkdir, Op, Touch, UnknownVersion, Write, decode, encode
from clusterfs.machine import StoreMachine
from clusterfs.membership import Member
from clusterfs.outcomes import Refusal
from clusterfs.raft import Address, StorageDamaged, membership, segments
from clusterfs.raft.core import MEMBERSHIP, NO_OP, REGULAR
from clusterfs.raft.entries import Entries
from clusterfs.raft.files import LocalFiles
from clusterfs.raft.journal import FileLog
from clusterfs.raft.membership import Configuration, Configurations
from clusterfs.raft.records import Damaged, Kind, one_and_rest, pair_and_rest, place, uid_and_tail
from clusterfs.raft.snapshot import NAME, Point, SnapshotStore, chunks_in, verify
from clusterfs.refusals import to_error
from clusterfs.state import State
from clusterfs.tree import Directory, File, Parts, join, walk
from kvorum.errors import InvalidInput, NotFound, Refused
from kvorum.node import RAFT_PORT, load_identity

# As `clusterfs.daemon` has them.
_LOCK = "clusterfs.lock"
_DATA = "clusterfs"
_RAFT = "raft"

Progress = Callable[[int, int], None]


def quiet(_done: int, _total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """`index`: up to which `state` holds; the log may go on to `last_index` with what is not known to be committed."""

    uid: str
    state: State
    index: int
    configuration: Configuration
    snapshot_index: int
    base_index: int
    last_index: int
    commit_index: int
    term: int
    segments: int
    torn_bytes: int


@contextlib.contextmanager
def held(state_dir: Path) -> Iterator[Path]:
    """The data of a node, for as long as nobody else uses it. Raises Refused, NotFound."""
    if not state_dir.is_dir():
        raise NotFound(f"there is no {state_dir}", remedy="name the state directory with --state-dir")
    with (state_dir / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(
                f"kvorum-clusterfs works on {state_dir}", remedy="stop it first: systemctl stop kvorum-clusterfs"
            ) from None
        yield state_dir / _DATA


def load(data: Path, *, everything: bool = False, progress: Progress = quiet) -> Loaded:
    """The state as of the last entry that is known to be committed; of the last one at all with `everything`, or when this
    node alone decides what is committed. Raises NotFound, StorageDamaged."""
    files = LocalFiles(data / _RAFT)
    if not files.path.is_dir() or not segments.is_there(files):
        raise NotFound(f"there is no store in {data}", remedy="name the state directory with --state-dir")
    try:
        replay, count, torn = _replayed(files, progress)
        point = verify(files, NAME) if NAME in files.names() else Point(0, 0, Configuration())
        machine = StoreMachine(ring=1)
        if point.index:
            machine.restore(point.index, chunks_in(files, NAME))
        assert replay.uid is not None
        entries = replay.entries
        if entries.base_index > point.index:
            raise Damaged(f"the log begins after {entries.base_index}, the snapshot ends at {point.index}")
        # A log that is behind its snapshot, or of another opinion, has nothing to add: see `raft.core`.
        last = entries.last_index if entries.term_at(point.index) == point.term else point.index
        configurations = Configurations(point.index, point.configuration)
        for command, index, _ in entries.between(point.index + 1, last + 1):
            if command[:1] == MEMBERSHIP:
                configurations.append(index, membership.decode(command[1:]))
        is_alone = set(configurations.current) == {replay.uid}
        through = last if everything or is_alone else max(point.index, min(last, replay.tail.commit_index))
        for command, index, _ in entries.between(point.index + 1, through + 1):
            if command[:1] == REGULAR:
                machine.apply(index, command[1:])
            progress(index - point.index, through - point.index)
    except (Damaged, AssertionError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(files.path, error) from error
    return Loaded(
        uid=replay.uid,
        state=machine.state,
        index=through,
        configuration=configurations.at(through),
        snapshot_index=point.index,
        base_index=entries.base_index,
        last_index=last,
        commit_index=replay.tail.commit_index,
        term=replay.tail.term,
        segments=count,
        torn_bytes=torn,
    )


def _replayed(files: LocalFiles, progress: Progress) -> tuple[segments.Replay, int, int]:
    replay = segments.Replay(Entries())
    total = len(segments.names(files))
    count = torn = 0
    for segment in segments.read(files):
        replay.take_segment(segment, 0)
        count, torn = count + 1, segment.torn_bytes
        progress(count, total)
    replay.finish()
    return replay, count, torn


def _damaged(path: Path, error: Exception) -> StorageDamaged:
    return StorageDamaged(
        f"the store in {path} is damaged: {error}",
        remedy="remove this node from the cluster, empty the directory and join again; with a single node, restore a backup",
        details={"path": str(path)},
    )


def digest(state: State) -> str:
    """The same for two nodes whose states are the same."""
    sha = hashlib.sha256()
    for chunk in snapshot.encode(state):
        sha.update(chunk)
    return sha.hexdigest()


# What the log says.


def dump(data: Path, *, first: int = 0, last: int = 2**64, contents: bool = False) -> Iterator[dict[str, object]]:
    """Its records in order; with a range only the entries in it. Contents may be secrets and are left out unless asked for.
    Raises NotFound, StorageDamaged after what is readable."""
    files = LocalFiles(data / _RAFT)
    if not files.path.is_dir() or not segments.is_there(files):
        raise NotFound(f"there is no store in {data}", remedy="name the state directory with --state-dir")
    is_ranged = first > 0 or last < 2**64
    try:
        for segment in segments.read(files):
            for record, offset in segment.scan.records:
                if record.kind is Kind.entry:
                    index, term, command = pair_and_rest(record.body)
                    if first <= index <= last:
                        yield {"kind": "entry", "index": index, "term": term, **_command(command, contents=contents)}
                elif not is_ranged:
                    where = {"segment": segment.name, "offset": offset}
                    yield {"kind": record.kind.name, **where, **_record(record.kind, record.body)}
    except Damaged as error:
        raise _damaged(files.path, error) from error


def _record(kind: Kind, body: bytes) -> dict[str, object]:
    match kind:
        case Kind.head:
            uid, tail = uid_and_tail(body)
            return {"uid": uid, **msgspec.to_builtins(tail)}
        case Kind.vote:
            term, name = one_and_rest(body)
            return {"term": term, "voted_for": name.decode(errors="replace")}
        case Kind.commit:
            return {"index": one_and_rest(body)[0]}
        case _:
            found = place(body)
            return {"index": found.index, "term": found.term}


def _command(command: bytes, *, contents: bool) -> dict[str, object]:
    kind, body = command[:1], command[1:]
    if kind == NO_OP:
        return {"type": "nothing"}
    try:
        if kind == MEMBERSHIP:
            change = membership.decode(body)
            return {"type": "membership", **{name: getattr(change, name) for name in change.__struct_fields__}}
        envelope = decode(body)
    except (Malformed, UnknownVersion, msgspec.DecodeError, UnicodeDecodeError) as error:
        return {"type": "unreadable", "bytes": len(body), "why": str(error)}
    told: dict[str, object] = msgspec.to_builtins(envelope)
    op = told["op"]
    if isinstance(envelope.op, Write) and isinstance(op, dict) and not contents:
        op["content"] = {
            "bytes": len(envelope.op.content),
            "sha256": hashlib.sha256(envelope.op.content).hexdigest(),
        }
    return {"type": "command", **told}


# The tree out, and in.


def export_files(state: State, target: Path, *, progress: Progress = quiet) -> int:
    """Writes the tree below `target`, which is empty or not there; modes as the mount shows them. Returns how many entries."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Refused(f"{target} is not empty", remedy="name a directory that is empty or not there yet")
    target.mkdir(parents=True, exist_ok=True)
    target.chmod(0o700)
    found = _entries(state)
    for count, (parts, node) in enumerate(found, 1):
        path = target.joinpath(*parts)
        bits = rules.mode(parts, is_directory=isinstance(node, Directory), is_quorate=True) & 0o777
        if isinstance(node, File):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as stream:
                stream.write(node.content)
        else:
            path.mkdir(0o700)
        path.chmod(bits)
        progress(count, len(found))
    # Times last: what is written into a directory changes its own.
    for parts, node in reversed(found):
        os.utime(target.joinpath(*parts), (node.mtime, node.mtime))
    return len(found)


def export_tar(state: State, stream: IO[bytes]) -> int:
    found = _entries(state)
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for parts, node in found:
            info = tarfile.TarInfo(join(parts))
            info.mode = rules.mode(parts, is_directory=isinstance(node, Directory), is_quorate=True) & 0o777
            info.mtime = node.mtime
            if isinstance(node, File):
                info.size = len(node.content)
                archive.addfile(info, BytesIO(node.content))
            else:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
    return len(found)


def _entries(state: State) -> list[tuple[Parts, File | Directory]]:
    """Parents first. A name that would lead out of the target is no name of ours."""
    found = [(parts, node) for parts, node in walk(state.root) if parts]
    for parts, _ in found:
        if rules.split(join(parts)) != parts:
            raise _damaged(Path(join(parts)), Damaged("its name is none"))
    return found


def import_files(source: Path, state_dir: Path, data: Path, *, progress: Progress = quiet) -> int:
    """A fresh store with this node as its only member, from the files below `source`. What the mount computes and locks are
    left out. Returns how many entries. Raises Refused when there is data, InvalidInput for a file that is no entry."""
    if data.exists() and any(data.iterdir()):
        raise Refused(f"there is a store in {data}", remedy="move it aside first: nothing is ever overwritten")
    identity = load_identity(state_dir / "node.json")
    fresh = data.with_name(f"{data.name}.importing")
    if fresh.exists():
        raise Refused(f"{fresh} is left of an earlier attempt", remedy="delete it")
    machine = StoreMachine(ring=1)
    member = MemberPut(identity.uid, identity.name, identity.address, 1)
    # Entry 1 is the configuration, which a founder has without being told.
    index = 1
    found = list(_sources(source))
    for count, op in enumerate([member, *found], 1):
        index += 1
        entry = encode(Envelope(op, author="root@pam", source="import", time_ms=time.time_ns() // 1_000_000))
        result = machine.apply(index, entry)
        if isinstance(result, Refusal):
            raise to_error(result)
        progress(count, len(found) + 1)
    (fresh / _RAFT).mkdir(parents=True, mode=0o700)
    fresh.chmod(0o700)
    voters = {identity.uid: Address(identity.address, RAFT_PORT)}
    files = LocalFiles(fresh / _RAFT)
    snapshots = SnapshotStore(files)
    snapshots.write(Point(index, 1, Configuration(voters)), snapshot.encode(machine.state))
    snapshots.adopt_written()
    log = FileLog(files, uid=identity.uid)
    log.setCurrentTerm(1, None)
    log.restart(index, 1)
    log.close()
    seed.save(
        seed.Seed(
            cluster_name=identity.cluster_name,
            members=[Member(identity.uid, identity.name, identity.address, 1)],
            joining=False,
        ),
        fresh,
    )
    if data.exists():
        data.rmdir()
    fresh.rename(data)
    LocalFiles(state_dir).sync()
    return machine.state.root.count


def _sources(source: Path) -> Iterator[Op]:
    """What makes the files below a directory, parents first."""
    if not source.is_dir():
        raise NotFound(f"there is no directory {source}")
    yield from _below(source, ())


def _below(directory: Path, at: Parts) -> Iterator[Op]:
    for path in sorted(directory.iterdir()):
        parts = (*at, path.name)
        name = join(parts)
        if parts[0] in rules.RESERVED or parts[:2] == rules.LOCKS or path.name == "lost+found":
            continue
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise InvalidInput(f"{path} is neither a file nor a directory", remedy="remove it from what is imported")
        # After the whole of it a file has the time that it had.
        mtime = max(0, int(path.stat().st_mtime))
        if path.is_dir():
            yield Mkdir(name, exist_ok=True)
            yield from _below(path, parts)
        else:
            yield Write(name, path.read_bytes())
            yield Touch(name, mtime)
