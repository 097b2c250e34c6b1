"""A member with a good certificate and bad intentions: it is cut off, the replica and its memory stay what they were."""

import random
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from raft_cluster import Cluster, free_port, until
from test_raft_transport import Stranger

from clusterfs.raft import Address
from clusterfs.raft.frames import frame
from clusterfs.raft.messages import AppendEntries, AppendReply, Introduction, ReadIndexReply, SnapshotChunk, encode

MAX_GROWTH_BYTES = 96 * 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def raw(**fields: object) -> bytes:
    return frame(msgspec.msgpack.encode(fields))


def hostile_frames() -> Iterator[tuple[str, bytes]]:
    append = {
        "type": "append_entries", "term": 1, "commit_index": 0, "sent_at": 0.0, "quorum_age_s": 0.0,
        "prev_index": 0, "prev_term": 0, "entries": [],
    }  # fmt: skip
    yield "another type", raw(type="exec", code="x")
    yield "no type", raw(term=1)
    yield "no map", frame(msgspec.msgpack.encode([1, 2, 3]))
    yield "a field of another type", raw(**{**append, "term": "one"})
    yield "a negative term", raw(**{**append, "term": -1})
    yield "a term beyond all bounds", raw(**{**append, "term": 2**64 - 1})
    yield "a negative index", raw(**{**append, "prev_index": -(2**63)})
    yield "entries that do not follow", raw(**{**append, "entries": [(b"\0x", 7, 1), (b"\0y", 3, 1)]})
    yield "entries of a later term", raw(**{**append, "entries": [(b"\0x", 1, 9)]})
    yield "members that do not parse", raw(**{**append, "entries": [(b"\2x", 1, 1)]})
    yield "a negative age", raw(**{**append, "quorum_age_s": -1e9})
    yield "no number at all", raw(**{**append, "quorum_age_s": float("nan")})
    yield "a port that is none", raw(type="introduction", index=5, members={"x": ("h", 70_000)})
    yield "bad UTF-8 in a key", frame(b"\x81\xa4\xff\xff\xff\xff\x01")
    yield "deep nesting", frame(b"\x82\xa4type\xabread_index_\xa7request" + b"\x91" * 500_000)
    yield "a list that claims four thousand million items", frame(b"\xdd\xff\xff\xff\xff")
    yield "a map that claims as many", frame(b"\xdf\xff\xff\xff\xff\xa4type")
    yield "bytes that claim as many", frame(b"\x82\xa4type\xa7whisper\xa7payload\xc6\xff\xff\xff\xff")
    yield "a length beyond the cap", b"\xff\xff\xff\xff" + b"x" * 100
    yield "a length just beyond the cap", struct.pack(">I", 16 * 2**20 + 1)
    chance = random.Random(7)
    for number in range(30):
        yield f"noise {number}", frame(chance.randbytes(chance.randrange(1, 3000)))


def is_cut_off(friend: Stranger, data: bytes) -> bool:
    """It said a proper hello before; does the door close on this?"""
    try:
        friend.sock.sendall(struct.pack(">I", 0) + data)
        friend.sock.settimeout(10)
        while friend.sock.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    else:
        return True
    finally:
        friend.sock.close()


@pytest.fixture
def friend(cluster: Cluster) -> str:
    """The uid of somebody whom a cluster of one lets connect."""
    (uid,) = cluster.found(1)
    cluster.leader()
    friend = str(uuid.uuid4())
    cluster.replicas[uid].allow_peer(friend, Address("127.0.0.1", free_port()))
    tls = cluster.tls[friend] = cluster.authority.node(friend)
    until(lambda: not Stranger(cluster.addresses[uid], tls).is_turned_away(), what="a welcome")
    return friend


def test_whoever_sends_nonsense_is_cut_off_and_costs_nothing(cluster: Cluster, friend: str) -> None:
    (uid,) = cluster.replicas
    replica, address, tls = cluster.replicas[uid], cluster.addresses[uid], cluster.tls[friend]
    before, term = resident_bytes(), replica.status().term
    for what, data in hostile_frames():
        assert is_cut_off(Stranger(address, tls), data), what
    assert resident_bytes() - before < MAX_GROWTH_BYTES
    assert replica.propose(b"still here", deadline_s=5) == 1
    assert (replica.status().term, replica.status().failure) == (term, None)


def test_well_formed_lies_of_one_who_has_no_vote_commit_and_cost_nothing(cluster: Cluster, friend: str) -> None:
    (uid,) = cluster.replicas
    replica, address, tls = cluster.replicas[uid], cluster.addresses[uid], cluster.tls[friend]
    replica.propose(b"true", deadline_s=5)
    state = replica.status()
    lies = [
        AppendReply(state.term, True, 0, 2**62, 0, 1e300),
        AppendReply(state.term, False, 2**62, 0, 2**62, float("-inf")),
        AppendReply(0, True, 0, 10**6, 0, 0.0),
        AppendEntries(0, 2**62, 0.0, 0.0, 2**62 - 1, 0, []),
        SnapshotChunk(0, 2**62, 0.0, 0.0, 2**62, 0, 2**62, 2**62, b"x" * 1000),
        ReadIndexReply(1, 2**62),
        Introduction(2**62, {str(uuid.uuid4()): ("\0 no address", 1) for _ in range(1000)}),
    ]
    before = resident_bytes()
    liar = Stranger(address, tls)
    liar.sock.sendall(struct.pack(">I", 0) + b"".join(frame(encode(lie)) for lie in lies * 200))
    assert replica.propose(b"also true", deadline_s=10) == 2
    after = replica.status()
    liar.sock.close()
    assert (after.term, after.failure, sorted(after.members)) == (state.term, None, [uid])
    assert after.commit_index == state.commit_index + 1
    assert cluster.machines[uid].entries == ["true", "also true"]
    assert resident_bytes() - before < MAX_GROWTH_BYTES
