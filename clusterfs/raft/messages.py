"""What replicas say to each other: typed msgpack, decoded against these types and nothing else.

The two messages that pysyncobj composes itself (`request_vote`, `timeout_now`) are dicts with the same fields, and
encode to the same bytes. A field may be added with a default; one is never reused.
"""

import msgspec

Entry = tuple[bytes, int, int]  # command, index, term


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """Common root."""


class RequestVote(Message, tag="request_vote", frozen=True):
    term: int
    last_log_index: int
    last_log_term: int
    # The leader asked for this election: it counts although that leader is alive.
    transfer: bool = False


class VoteReply(Message, tag="vote_reply", frozen=True):
    term: int
    granted: bool


class PreVote(Message, tag="pre_vote", frozen=True):
    """Would you vote for me in `term`? Changes nothing at the receiver."""

    term: int
    round: int
    last_log_index: int
    last_log_term: int


class PreVoteReply(Message, tag="pre_vote_reply", frozen=True):
    term: int
    round: int
    granted: bool


class TimeoutNow(Message, tag="timeout_now", frozen=True):
    term: int


class Beat(Message, frozen=True):
    """What each message of a leader carries: `sent_at` (its own clock) comes back in the answer, and `quorum_age_s` says
    how old its newest proof of a majority is."""

    term: int
    commit_index: int
    sent_at: float
    quorum_age_s: float


class AppendEntries(Beat, tag="append_entries", frozen=True):
    prev_index: int
    prev_term: int
    entries: list[Entry]
    # Tells only of commits; an answer would tell nothing new.
    quiet: bool = False


class SnapshotChunk(Beat, tag="snapshot_chunk", frozen=True):
    """A piece of the snapshot file; empty ones only keep the follower waiting."""

    index: int
    snapshot_term: int
    size: int
    offset: int
    data: bytes


class AppendReply(Message, tag="append_reply", frozen=True):
    """`match`: the log equals the leader's up to here (when `ok`); `prev`: the point that was asked about; `hint`: where
    to try next (when not `ok`)."""

    term: int
    ok: bool
    prev: int
    match: int
    hint: int
    sent_at: float


class SnapshotReply(Message, tag="snapshot_reply", frozen=True):
    """`offset`: bytes of the snapshot at `index` held so far; `again` asks to go on from there, whatever was sent."""

    term: int
    index: int
    offset: int
    again: bool
    sent_at: float


class Forward(Message, tag="forward", frozen=True):
    """Commands of a follower's clients for the leader's log: (request, command)."""

    commands: list[tuple[int, bytes]]


class Forwarded(Message, tag="forwarded", frozen=True):
    """(request, index, term) of each command that is in the log now; and the requests that certainly are not."""

    accepted: list[tuple[int, int, int]]
    refused: list[int]


class ReadIndex(Message, tag="read_index", frozen=True):
    """Asks the leader up to where a linearizable read that begins now must see."""

    request: int


class ReadIndexReply(Message, tag="read_index_reply", frozen=True):
    request: int
    index: int
    # False: ask somebody else.
    ok: bool = True


class ChangeMember(Message, tag="change_member", frozen=True):
    """Asks the leader for one membership change; repeated by the asker until it sees the change applied."""

    op: str
    uid: str
    host: str = ""
    port: int = 0


class ChangeProgress(Message, tag="change_progress", frozen=True):
    """Answers ChangeMember: why it is not done yet."""

    uid: str
    waiting_for: str
    done: bool = False


class Introduction(Message, tag="introduction", frozen=True):
    """The sender's configuration and the entry that made it: a node that was away lets those connect whom it missed."""

    index: int
    members: dict[str, tuple[str, int]]


class Whisper(Message, tag="whisper", frozen=True):
    """Nothing of consensus: bytes of the replicas' users, who expect that some are lost. Never in the log."""

    payload: bytes


AnyMessage = (
    RequestVote
    | VoteReply
    | PreVote
    | PreVoteReply
    | TimeoutNow
    | AppendEntries
    | SnapshotChunk
    | AppendReply
    | SnapshotReply
    | Forward
    | Forwarded
    | ReadIndex
    | ReadIndexReply
    | ChangeMember
    | ChangeProgress
    | Introduction
    | Whisper
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message | dict[str, object]) -> bytes:
    return _encoder.encode(message)


def decode(payload: bytes) -> AnyMessage:
    """Raises msgspec.DecodeError for anything that is not one of our messages."""
    return _decoder.decode(payload)
