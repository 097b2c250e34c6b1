"""What the log carries: one command in a versioned envelope, encoded strictly and decoded strictly.

An entry is one byte of format version and a msgpack body. A version that this program does not know stops the node (an
older program must not guess what a newer one wrote: `UnknownVersion`); a body that does not decode under a known version is
refused alike everywhere (`Malformed`). Nothing here looks at the tree.

Old versions are still read, and their entries mean for ever what they meant when they were written: `Envelope.version` tells
the state which rules to apply, or replicas of two programs would part. Version 2 brought the history, and with it writes that
change nothing and are none; version 3 what is done to the history itself (Restore, Forget).

What is written is the version that every member understands: the highest one that the log has seen (`State.format`). The leader
raises it by one entry of a higher version, once all members have said that they know it (`clusterfs.formats`).
"""

from typing import Literal

import msgspec

# The newest that this program knows. Each version down to the oldest is read.
VERSION = 3
_OLDEST = 1
# What is written until all members have said that they know more.
BASE_VERSION = 2

# What a lease's call without terms meant when there was but one profile, and for ever means.
BARE_PAUSE_MS = 3500
BARE_TAKEOVER_MS = 9509


class UnknownVersion(AssertionError):
    """The log was written by a newer program. A broken invariant: the node must stop, not skip."""


class Malformed(Exception):
    """The entry is no command of its version."""


class _Op(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Write(_Op, frozen=True, tag="write"):
    """Create or replace a file."""

    path: str
    content: bytes
    expected_version: int | None = None
    absent: bool = False
    parents: bool = False


class Mkdir(_Op, frozen=True, tag="mkdir"):
    """Make a directory; one that is there already is an error unless `exist_ok`."""

    path: str
    parents: bool = False
    exist_ok: bool = False


class Delete(_Op, frozen=True, tag="delete"):
    """Remove an entry; `expected_version` 0 is any, `only` demands a kind (unlink and rmdir)."""

    path: str
    expected_version: int = 0
    recursive: bool = False
    only: Literal["", "file", "directory"] = ""


class Move(_Op, frozen=True, tag="move"):
    """Rename; a directory takes everything below it along."""

    path: str
    new_path: str
    expected_version: int = 0
    replace: bool = False


class Touch(_Op, frozen=True, tag="touch"):
    """Set the modification time, in seconds since the epoch; None: the time of the command. Renews a lock directory."""

    path: str
    mtime: int | None = None


class Unlock(_Op, frozen=True, tag="unlock"):
    """Remove a lock directory that the proposer has seen unchanged for its whole life."""

    path: str
    expected_version: int


class MemberPut(_Op, frozen=True, tag="member_put"):
    """Add a node, or change its address; `number` 0 takes the next free one."""

    uid: str
    name: str
    address: str
    number: int = 0
    witness: bool = False


class MemberRename(_Op, frozen=True, tag="member_rename"):
    """Another name for a member; its directory goes along, and its guests keep their generations."""

    uid: str
    name: str


class MemberRemove(_Op, frozen=True, tag="member_remove"):
    uid: str


class LeaseAcquire(_Op, frozen=True, tag="lease_acquire"):
    """`pause_ms` and `takeover_ms`: the terms by which the holder will live (`ha.leases`); others go by these."""

    uid: str
    pause_ms: int = BARE_PAUSE_MS
    takeover_ms: int = BARE_TAKEOVER_MS


class LeaseRenew(_Op, frozen=True, tag="lease_renew"):
    """`sent_ms` puts the holder's own calls in order; it is of the holder's clock, and nobody compares it to another."""

    uid: str
    incarnation: int
    sent_ms: int = 0
    pause_ms: int = BARE_PAUSE_MS
    takeover_ms: int = BARE_TAKEOVER_MS


class LeaseRest(_Op, frozen=True, tag="lease_rest"):
    """Give a lease back under which nothing runs: it is not renewed again, and its silence means nothing."""

    uid: str
    incarnation: int


class LeaseFence(_Op, frozen=True, tag="lease_fence"):
    """Declare a lease dead, provided that it was not renewed beyond `renewal`.

    Or, whatever was renewed, because its holder is proven off: `confirmed` says by what. Also that is for one incarnation.
    """

    uid: str
    incarnation: int
    renewal: int
    confirmed: str = ""


class Configure(_Op, frozen=True, tag="configure"):
    """Set what `clusterfs.settings` holds; None: as it is."""

    max_file_bytes: int | None = None
    max_tree_bytes: int | None = None
    max_entries: int | None = None
    history_days: int | None = None
    history_bytes: int | None = None
    history_changes: int | None = None


class LockAcquire(_Op, frozen=True, tag="lock_acquire"):
    """Take a lock or, with `wait`, stand in line for it; asked again it tells how things are and renews the session."""

    name: str
    session: str
    ttl_s: int = 30
    wait: bool = True


class LockRelease(_Op, frozen=True, tag="lock_release"):
    """Give a lock back, or leave the line."""

    name: str
    session: str


class LockBreak(_Op, frozen=True, tag="lock_break"):
    """Take a lock away from whoever has it."""

    name: str


class SessionRenew(_Op, frozen=True, tag="session_renew"):
    session: str


class SessionEnd(_Op, frozen=True, tag="session_end"):
    """Give back everything that the session has."""

    session: str


class SessionExpire(_Op, frozen=True, tag="session_expire"):
    """As SessionEnd, provided that it was not renewed beyond `renewed`, as of which the proposer has seen it grow too old."""

    session: str
    renewed: int


class Restore(_Op, frozen=True, tag="restore"):
    """Give every file at or below `path` the content that it had at log index `at`, all of them or none. What has come since
    stays."""

    path: str
    at: int


class Forget(_Op, frozen=True, tag="forget"):
    """Take out of the history what the file at `path` held up to log index `at` (0: up to now) and no file holds any more."""

    path: str
    at: int = 0


class RaiseFormat(_Op, frozen=True, tag="raise_format"):
    """Does nothing. That it is written under a new version says that all members know that version."""


# What version 1 knew.
_Op1 = (
    Write | Mkdir | Delete | Move | Touch | Unlock | MemberPut | MemberRemove | LeaseAcquire | LeaseRenew | LeaseFence
)
_Op2 = (
    _Op1
    | LeaseRest
    | Configure
    | MemberRename
    | LockAcquire
    | LockRelease
    | LockBreak
    | SessionRenew
    | SessionEnd
    | SessionExpire
)
Op = _Op2 | Restore | Forget | RaiseFormat


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A command with who, why and when.

    `client` and `seq` name the command for ever: a second copy is recognised and answered, not applied. An empty client asks
    for no such memory (lease renewals). `node` is the UUID of the node that proposed it, `source` where the author sits (an
    address), `time_ms` the leader's clock (Unix, ms).
    """

    op: Op
    client: str = ""
    seq: int = 0
    author: str = ""
    node: str = ""
    source: str = ""
    reason: str = ""
    time_ms: int = 0
    # The command counts only while this lock is held under this token.
    lock: str = ""
    token: int = 0
    # Of the format; it stands before the body, never in it.
    version: int = VERSION


class _Envelope2(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of version 2."""

    op: _Op2
    client: str = ""
    seq: int = 0
    author: str = ""
    node: str = ""
    source: str = ""
    reason: str = ""
    time_ms: int = 0
    lock: str = ""
    token: int = 0
    # As version 2 has it: it stands before the body, and what stands here is refused.
    version: int = 2


class _Envelope1(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of version 1, with the commands that it knew."""

    op: _Op1
    client: str = ""
    seq: int = 0
    author: str = ""
    node: str = ""
    source: str = ""
    reason: str = ""
    time_ms: int = 0


_encoder = msgspec.msgpack.Encoder()
_Body = Envelope | _Envelope2 | _Envelope1
_decoders: dict[int, msgspec.msgpack.Decoder[_Body]] = {
    version: msgspec.msgpack.Decoder(body) for version, body in ((1, _Envelope1), (2, _Envelope2), (3, Envelope))
}


_RENEWAL = b"lease_renew"
_RENEWAL_AT = 1 + _encoder.encode(Envelope(LeaseRenew("", 0))).index(_RENEWAL)


def version_of(op: Op) -> int:
    """The oldest version, of those that are still written, that can say this."""
    return VERSION if isinstance(op, Restore | Forget | RaiseFormat) else BASE_VERSION


def encode(envelope: Envelope) -> bytes:
    if envelope.version == VERSION:
        return bytes([VERSION]) + _encoder.encode(envelope)
    assert _OLDEST <= envelope.version < VERSION, envelope.version
    body = _Envelope2 if envelope.version == 2 else _Envelope1
    fields = {name: getattr(envelope, name) for name in body.__struct_fields__}
    return bytes([envelope.version]) + _encoder.encode(body(**fields))


def decode(entry: bytes) -> Envelope:
    """Raises UnknownVersion or Malformed."""
    if not entry:
        raise Malformed("empty entry")
    version = entry[0]
    if not _OLDEST <= version <= VERSION:
        raise UnknownVersion(f"entry of format {version}, this program knows up to {VERSION}: upgrade this node")
    try:
        body = _decoders[version].decode(memoryview(entry)[1:])
    # msgspec lets the second escape for bad UTF-8 in the key of a map.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from error
    if isinstance(body, Envelope | _Envelope2) and body.version != version:
        raise Malformed("the version stands before the body")
    if isinstance(body, Envelope):
        return body
    return Envelope(**{name: getattr(body, name) for name in body.__struct_fields__} | {"version": version})


def is_renewal(entry: bytes) -> bool:
    """Of a lease. Asked about every entry, so it looks at one place first: a command stands first in the body, its name first
    in the command."""
    if not entry.startswith(_RENEWAL, _RENEWAL_AT):
        return False
    try:
        return isinstance(decode(entry).op, LeaseRenew)
    except (Malformed, UnknownVersion):
        return False


def stamped(entry: bytes, *, time_ms: int) -> bytes:
    """The entry with the leader's time in it; one that does not decode is left for `apply` to refuse."""
    try:
        envelope = decode(entry)
    except (Malformed, UnknownVersion):
        return entry
    return encode(msgspec.structs.replace(envelope, time_ms=time_ms))
