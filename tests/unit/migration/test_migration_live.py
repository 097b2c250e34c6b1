"""The pure parts of the copying: what is asked of libvirt, and what its figures mean."""

from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from agent.migration.live import (
    Destination,
    Progress,
    Relayed,
    Wish,
    _flags,
    _parameters,
    is_safe_on_shared,
    progress_of,
    with_paths,
)
from kvorum.ids import NodeUid

XML = """\
<domain><devices>
<disk type='file'><driver cache='none'/><source file='/a'/><backingStore type='file'><source file='/b'/></backingStore>
<target dev='sda'/></disk>
<disk type='file'><driver cache='writeback'/><source file='/c'/><target dev='sdb'/></disk>
<disk type='file' device='cdrom'><driver cache='writeback'/><source file='/d'/><target dev='sdc'/><readonly/></disk>
</devices></domain>"""
MIB = 2**20
THERE = Destination(Path("/run/t.sock"), "10.0.0.2", 60007, NodeUid("uid-2"), Relayed(Path("/run/m"), Path("/run/d")))


def test_a_shared_path_is_vouched_for_only_without_the_hosts_cache() -> None:
    assert is_safe_on_shared(XML, ["sda"])
    assert not is_safe_on_shared(XML, ["sda", "sdb"])
    assert is_safe_on_shared(XML, ["sda", "sdc"])
    assert not is_safe_on_shared(XML, [])
    assert not is_safe_on_shared(XML, ["sdc"])


def test_memory_alone_goes_by_qemus_own_tls_to_the_named_node() -> None:
    flags, parameters = _flags(XML, Wish(shared=["sda"])), _parameters(XML, THERE, Wish(shared=["sda"]))
    for needed in ("PEER2PEER", "LIVE", "PAUSED", "TLS", "UNSAFE"):
        assert flags & getattr(libvirt, f"VIR_MIGRATE_{needed}"), needed
    assert not flags & libvirt.VIR_MIGRATE_NON_SHARED_DISK
    assert parameters == {"migrate_uri": "tcp://10.0.0.2:60007", "tls.destination": "uid-2"}
    assert _parameters(XML, replace(THERE, address="fd00::2"), Wish())["migrate_uri"] == "tcp://[fd00::2]:60007"


def test_memory_and_disks_go_through_the_relays_and_never_in_the_open() -> None:
    wish = Wish(copied=["sdb"], bandwidth_limit=MIB + 1, paths={"sda": Path("/new")})
    flags, parameters = _flags(XML, wish), _parameters(XML, THERE, wish)
    assert flags & libvirt.VIR_MIGRATE_NON_SHARED_DISK and flags & libvirt.VIR_MIGRATE_PAUSED
    assert not flags & libvirt.VIR_MIGRATE_UNSAFE
    dest = parameters.pop("destination_xml")
    assert parameters == {
        "migrate_uri": "unix:///run/m",
        "disks_uri": "unix:///run/d",
        "migrate_disks": ["sdb"],
        "bandwidth": 2,
    }
    disk = etree.fromstring(dest).find(".//disk")
    assert disk.find("source").get("file") == "/new" and disk.find("backingStore") is None
    with pytest.raises(AssertionError):
        _parameters(XML, replace(THERE, relayed=None), wish)


def test_other_paths_change_nothing_else() -> None:
    assert etree.canonicalize(with_paths(XML, {})) == etree.canonicalize(XML)


def test_progress_counts_disks_and_memory_and_never_goes_back() -> None:
    start = Progress(0.0, "starting")
    assert progress_of({"memory_total": 0}, start) == start
    copying = progress_of({"disk_total": 60 * MIB, "disk_remaining": 40 * MIB}, start, memory_bytes=40 * MIB)
    assert (round(copying.fraction, 6), copying.phase) == (0.2, "disks 20 of 60 MiB")
    both = {"disk_total": 60 * MIB, "disk_remaining": 0, "memory_total": 40 * MIB, "memory_remaining": 20 * MIB}
    memory = progress_of({**both, "memory_processed": 7}, copying, memory_bytes=40 * MIB)
    assert (round(memory.fraction, 6), memory.transferred_bytes) == (0.8, 7)
    assert memory.phase == "disks 60 of 60 MiB, memory 20 of 40 MiB"
    dirtied = progress_of({**both, "memory_remaining": 39 * MIB, "memory_iteration": 3}, memory)
    assert dirtied.fraction == memory.fraction and dirtied.phase.endswith("round 3")
    assert progress_of({"memory_total": 5, "memory_remaining": 0}, memory).fraction == 0.99
