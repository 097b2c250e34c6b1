"""Upgrades node by node: what is written is what every member knows, and what is not known stops a node."""

from typing import Any

import msgspec
import pytest

from clusterfs import commands, formats, snapshot
from clusterfs.commands import (
    BASE_VERSION,
    VERSION,
    Envelope,
    Forget,
    Malformed,
    RaiseFormat,
    Restore,
    UnknownVersion,
    Write,
    decode,
    encode,
)
from clusterfs.machine import StoreMachine
from clusterfs.proposer import Proposer
from clusterfs.state import State, apply
from kvorum.errors import Unsupported

NEW = b"%d" % VERSION


@pytest.mark.parametrize(
    ("written", "told", "online", "expected"),
    [
        (BASE_VERSION, {"u1": NEW, "u2": NEW}, {"u1": True, "u2": True}, True),
        (BASE_VERSION, {"u1": NEW, "u2": b"99"}, {"u1": True, "u2": True}, True),
        (VERSION, {"u1": NEW}, {"u1": True}, False),
        (BASE_VERSION, {"u1": NEW, "u2": b"2"}, {"u1": True, "u2": True}, False),
        (BASE_VERSION, {"u1": NEW, "u2": None}, {"u1": True, "u2": True}, False),
        (BASE_VERSION, {"u1": NEW, "u2": "٣".encode()}, {"u1": True, "u2": True}, False),
        # One that is away said so before it went, and may come back as an older program.
        (BASE_VERSION, {"u1": NEW, "u2": NEW}, {"u1": True, "u2": False}, False),
        (BASE_VERSION, {"u1": NEW, "u2": NEW}, {"u1": True}, False),
        (BASE_VERSION, {}, {}, False),
    ],
)
def test_the_version_is_raised_once_every_member_is_there_and_knows_it(
    written: int, told: dict[str, bytes | None], online: dict[str, bool], expected: bool
) -> None:
    assert formats.may_be_raised(written, told, online) is expected


def test_a_cluster_of_mixed_programs_writes_what_the_older_one_knows(
    proposer: Proposer, machine: StoreMachine, replica: Any
) -> None:
    proposer.execute(Write("a", b"1"))
    for new in (Restore("", 1), Forget("a")):
        with pytest.raises(Unsupported, match="not every node"):
            proposer.execute(new)
    assert {entry[0] for entry in replica.log} == {BASE_VERSION}
    assert proposer.execute(RaiseFormat()).number == VERSION
    proposer.execute(Write("a", b"2"))
    proposer.execute(Restore("", 1))
    assert [entry[0] for entry in replica.log] == [BASE_VERSION, VERSION, VERSION, VERSION]
    assert machine.state.format == VERSION


def test_an_entry_keeps_its_version_when_it_is_stamped() -> None:
    for version in (1, 2, VERSION):
        entry = commands.stamped(encode(Envelope(Write("a", b"1"), version=version)), time_ms=7)
        assert (entry[0], decode(entry).version, decode(entry).time_ms) == (version, version, 7)


def test_what_version_2_did_not_know_is_no_command_of_it() -> None:
    """An older node would refuse it where a newer one did it."""
    entry = encode(Envelope(Forget("a")))
    with pytest.raises(Malformed):
        decode(bytes([2]) + entry[1:])
    with pytest.raises(UnknownVersion, match="upgrade this node"):
        decode(bytes([VERSION + 1]) + entry[1:])


def test_a_snapshot_of_a_mixed_cluster_is_one_that_the_older_program_reads() -> None:
    state, _, _ = apply(State(), Envelope(Write("a", b"1"), version=2), 1)
    old = next(iter(snapshot.encode(state)))
    assert msgspec.msgpack.decode(old[4:])["format"] == 2
    assert "entry_format" not in msgspec.msgpack.decode(old[4:])
    assert snapshot.decode(snapshot.encode(state)) == state
    raised, _, _ = apply(state, Envelope(RaiseFormat()), 2)
    new = next(iter(snapshot.encode(raised)))
    assert msgspec.msgpack.decode(new[4:])["format"] == 3
    assert snapshot.decode(snapshot.encode(raised)) == raised
    assert raised.format == VERSION
