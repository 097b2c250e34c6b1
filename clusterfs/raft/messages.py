"""What replicas say to each other: typed msgpack, decoded against these types and nothing else.

The two messages that pysyncobj composes itself (`request_vote`, `timeout_now`) are dicts with the same fields, and
encode to the same bytes. A field may be added with a default; one is never reused.
"""

from typing import Annotated

import msgspec

from . import membership

# Terms, indices, requests, offsets. The bounds are checked when a message is decoded, so that nothing behind the decoder has
# to think of a negative index or of one that no disk could hold.
Whole = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Age = Annotated[float, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

Entry = tuple[bytes, int, int]  # command, index, term
_MEMBERSHIP = b"\x02"


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """Common root."""


class RequestVote(Message, tag="request_vote", frozen=True):
    term: Whole
    last_log_index: Whole
    last_log_term: Whole
    # The leader asked for this election: it counts although that leader is alive.
    transfer: bool = False


class VoteReply(Message, tag="vote_reply", frozen=True):
    term: Whole
    granted: bool


class PreVote(Message, tag="pre_vote", frozen=True):
    """Would you vote for me in `term`? Changes nothing at the receiver."""

    term: Whole
    round: Whole
    last_log_index: Whole
    last_log_term: Whole


class PreVoteReply(Message, tag="pre_vote_reply", frozen=True):
    term: Whole
    round: Whole
    granted: bool


class TimeoutNow(Message, tag="timeout_now", frozen=True):
    term: Whole


class Beat(Message, frozen=True):
    """What each message of a leader carries: `sent_at` (its own clock) comes back in the answer, and `quorum_age_s` says
    how old its newest proof of a majority is."""

    term: Whole
    commit_index: Whole
    sent_at: float
    quorum_age_s: Age


class AppendEntries(Beat, tag="append_entries", frozen=True):
    prev_index: Whole
    prev_term: Whole
    entries: list[Entry]
    # Tells only of commits; an answer would tell nothing new.
    quiet: bool = False


class SnapshotChunk(Beat, tag="snapshot_chunk", frozen=True):
    """A piece of the snapshot file; empty ones only keep the follower waiting."""

    index: Whole
    snapshot_term: Whole
    size: Whole
    offset: Whole
    data: bytes


class AppendReply(Message, tag="append_reply", frozen=True):
    """`match`: the log equals the leader's up to here (when `ok`); `prev`: the point that was asked about; `hint`: where
    to try next (when not `ok`)."""

    term: Whole
    ok: bool
    # -1: none was asked about.
    prev: Annotated[int, msgspec.Meta(ge=-1, le=2**62)]
    match: Whole
    hint: Whole
    sent_at: float


class SnapshotReply(Message, tag="snapshot_reply", frozen=True):
    """`offset`: bytes of the snapshot at `index` held so far; `again` asks to go on from there, whatever was sent."""

    term: Whole
    index: Whole
    offset: Whole
    again: bool
    sent_at: float


class Forward(Message, tag="forward", frozen=True):
    """Commands of a follower's clients for the leader's log: (request, command)."""

    commands: list[tuple[Whole, bytes]]


class Forwarded(Message, tag="forwarded", frozen=True):
    """(request, index, term) of each command that is in the log now; and the requests that certainly are not: those in `busy`
    because too many of the same follower wait already."""

    accepted: list[tuple[Whole, Whole, Whole]]
    refused: list[Whole]
    busy: list[Whole] = []


class ReadIndex(Message, tag="read_index", frozen=True):
    """Asks the leader up to where a linearizable read that begins now must see."""

    request: Whole


class ReadIndexReply(Message, tag="read_index_reply", frozen=True):
    request: Whole
    index: Whole
    # False: ask somebody else.
    ok: bool = True


class ChangeMember(Message, tag="change_member", frozen=True):
    """Asks the leader for one membership change; repeated by the asker until it sees the change applied."""

    op: str
    uid: str
    host: str = ""
    port: Port = 0


class ChangeProgress(Message, tag="change_progress", frozen=True):
    """Answers ChangeMember: why it is not done yet."""

    uid: str
    waiting_for: str
    done: bool = False


class Introduction(Message, tag="introduction", frozen=True):
    """The sender's configuration and the entry that made it: a node that was away lets those connect whom it missed."""

    index: Whole
    members: dict[str, tuple[str, Port]]


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
    """Raises msgspec.DecodeError for anything that is not one of our messages, as we could have sent it."""
    try:
        message = _decoder.decode(payload)
    # msgspec lets the first escape for bad UTF-8 in the key of a map.
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
    if type(message) is AppendEntries:
        _require_sound(message)
    return message


def _require_sound(message: AppendEntries) -> None:
    """The entries follow each other, and none is of a later term than the leader's."""
    following, before = message.prev_index + 1, message.prev_term
    for command, index, term in message.entries:
        if index != following or not before <= term <= message.term:
            raise msgspec.ValidationError(f"entry {index} of term {term} where {following} was due")
        following, before = index + 1, term
        if command[:1] == _MEMBERSHIP:
            membership.decode(command[1:])
