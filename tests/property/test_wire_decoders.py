"""Bytes from the network are one of our messages within its bounds, or refused; and a replica survives both."""

import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "raft"))

from pysyncobj.node import Node
from raft_sim import Sim
from sim_checks import Violation

from clusterfs import commands
from clusterfs.raft.core import CANDIDATE, LEADER
from clusterfs.raft.frames import FrameReader, FrameTooLong, frame
from clusterfs.raft.messages import AnyMessage, AppendEntries, Message, PreVote, PreVoteReply, VoteReply, decode

KINDS = get_args(AnyMessage)
WILD = st.sampled_from([-1, -2, -(2**63), -(2**31), 2**31, 2**32, 2**62, 2**62 + 1, 2**63, 2**64 - 1])
# Mostly ones that a replica takes, or it would never get to see anything odd.
NUMBERS = st.integers(0, 19).flatmap(lambda chance: WILD if chance == 13 else st.integers(0, 9))
LEAVES = st.one_of(
    NUMBERS, st.floats(), st.booleans(), st.none(), st.binary(max_size=40), st.text(max_size=10),
    st.sampled_from(["n1", "n2", "n3", "add", "remove", "withdraw"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
ENTRIES = st.lists(
    st.tuples(st.one_of(st.sampled_from([b"\0x", b"\1", b"\2"]), st.binary(max_size=9)), NUMBERS, NUMBERS), max_size=4
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A map that looks like one of our messages, with fields of the right kind or of any."""
    kind = draw(st.sampled_from([*KINDS, *[AppendEntries] * 6]))
    found: dict[str, object] = {"type": kind.__struct_config__.tag}
    for field in msgspec.structs.fields(kind):
        likely: st.SearchStrategy[object] = NUMBERS
        match field.name:
            case "sent_at" | "quorum_age_s":
                likely = st.sampled_from([0.0, 0.1, 99.0]) | st.floats()
            case "granted" | "ok" | "again" | "transfer" | "quiet" | "done":
                likely = st.booleans()
            case "entries":
                likely = ENTRIES
            case "commands":
                likely = st.lists(st.tuples(NUMBERS, st.binary(max_size=20)), max_size=3)
            case "accepted":
                likely = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=3)
            case "refused":
                likely = st.lists(NUMBERS, max_size=3)
            case "data" | "payload":
                likely = st.binary(max_size=60)
            case "members":
                likely = st.dictionaries(st.text(max_size=4), st.tuples(st.text(max_size=5), NUMBERS), max_size=4)
            case "op" | "uid" | "host" | "waiting_for":
                likely = st.sampled_from(
                    ["add", "remove", "learn", "move", "recover", "withdraw", "n1", "n2", "n9", "", "\0"]
                )
        if field.name == "entries" and draw(st.booleans()) and _is_numeric(found, "prev_index", "term"):
            found[field.name] = _row(draw, found)
        elif draw(st.integers(0, 60)):
            found[field.name] = draw(likely if draw(st.integers(0, 30)) else VALUES)
    return msgspec.msgpack.encode(found)


def _is_numeric(found: dict[str, object], *names: str) -> bool:
    return all(type(found.get(name)) is int for name in names)


def _row(draw: st.DrawFn, found: dict[str, Any]) -> list[object]:
    """Entries as a leader would send them after what else the message says."""
    prev, term = found["prev_index"], found["term"]
    commands = draw(st.lists(st.sampled_from([b"\0x", b"\0y", b"\1"]), max_size=4))
    return [(command, min(index, 2**64 - 1), term) for index, command in enumerate(commands, prev + 1)]


@settings(max_examples=600, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_frames_are_the_same_however_they_are_cut_and_nothing_more_is_kept(
    parts: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(parts)

    def read(chunks: list[bytes]) -> tuple[list[bytes], bool]:
        reader, payloads = FrameReader(1000), []
        for chunk in chunks:
            try:
                payloads += reader.feed(chunk)
            except FrameTooLong:
                return payloads, True
            assert len(reader._buffer) <= 1004
        return payloads, False

    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, is_refused = read([stream[place : place + 1] for place in range(len(stream))])
    found, is_refused_too = read(chunks)
    assert is_refused == is_refused_too
    assert found == whole or (is_refused and found == whole[: len(found)])


@settings(max_examples=2000, deadline=None)
@given(st.binary(max_size=200) | bodies())
def test_any_bytes_are_a_message_or_refused(payload: bytes) -> None:
    try:
        message = decode(payload)
    except msgspec.DecodeError:
        return
    assert isinstance(message, Message)
    assert decode(msgspec.msgpack.encode(message)) == message or "nan" in repr(message)


@pytest.mark.parametrize("depth", [100, 10_000, 1_000_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    for opening in (b"\x91", b"\x81\xa1a"):
        for payload in (opening * depth, b"\x82\xa4type\xabread_index_\xa7request" + opening * depth):
            with pytest.raises(msgspec.DecodeError):
                decode(payload)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 255))
def test_any_bytes_are_a_command_or_refused(body: bytes, version: int) -> None:
    for entry in (body, bytes([version]) + body, bytes([commands.VERSION]) + body):
        try:
            commands.decode(entry)
        except (commands.Malformed, commands.UnknownVersion):
            continue


@settings(max_examples=400, deadline=None)
@given(st.lists(bodies(), min_size=1, max_size=12), st.sampled_from(["follower", "leader"]))
def test_a_replica_survives_whatever_a_peer_says_and_commits_nothing_by_it(payloads: list[bytes], role: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        sim = Sim(None, patch, seed=1)
        raft = _alone(sim, leads=role == "leader")
        for payload in payloads:
            try:
                message = decode(payload)
            except msgspec.DecodeError:
                continue
            _say(sim, message)
        sim.nodes["n1"].disk.is_full = False
        applied = raft.raftLastApplied
        assert applied <= raft.raftCommitIndex <= raft.log.last_index


def _say(sim: Sim, message: AnyMessage) -> None:
    """A liar may show a replica that its own log is not the cluster's: then it stops, and says which rule is broken. It may not
    fall over anything else."""
    node = sim.nodes["n1"]
    assert node.consensus is not None
    try:
        node.consensus._SyncObj__onMessageReceived(Node("n2"), message)
        sim.now += 0.02
        node.consensus.doTick(0.0)
    except Violation:
        # What the simulation's checks think of a peer that lies; the replica itself has no complaint.
        return
    except AssertionError as error:
        told = str(error)
        assert "committed" in told or "both lead" in told, (told, message)


def _alone(sim: Sim, *, leads: bool) -> object:
    sim.found(3)
    for uid in ("n2", "n3"):
        sim.crash(uid, power=False)
    node = sim.nodes["n1"]
    assert node.consensus is not None and node.exchange is not None
    sim._running = "n1"
    for uid in ("n2", "n3"):
        node.exchange.link(uid, up=True)
    if not leads:
        return node.consensus
    while node.consensus._SyncObj__raftState != CANDIDATE:
        node.exchange.sent.clear()
        sim.now += 0.1
        node.consensus.doTick(0.0)
        for target, message in list(node.exchange.sent):
            if isinstance(message, PreVote):
                node.consensus._SyncObj__onMessageReceived(Node(target), PreVoteReply(0, message.round, True))
    node.consensus._SyncObj__onMessageReceived(Node("n2"), VoteReply(node.consensus.raftCurrentTerm, True))
    assert node.consensus._SyncObj__raftState == LEADER
    return node.consensus


def test_a_frame_of_ours_is_read_back() -> None:
    assert FrameReader(100).feed(frame(b"abc") + frame(b"d")) == [b"abc", b"d"]
