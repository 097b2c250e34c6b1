"""What HA writes while it guards a guest and nothing happens: three real nodes. `python -m bench.ha_idle --profile normal`.

Bytes that the store, the HA daemon and the keeper of each node cause to be written (`write_bytes` of /proc/<pid>/io), watched for
some minutes and extrapolated; and the groups of the log that they are for: when the renewals of all nodes meet, there is one of
them in each interval. The log's space is zeroed before it is used, 4 MiB at once and so most likely not within these minutes: as
many bytes as the entries have are added for that. Not in it: a snapshot of the state after each 20,000 entries, which is after
5.5 hours of nothing else in profile normal with three nodes.

The bar is 5 MB per node and hour in profile normal. Needs root, KVM or patience, and a disk below the lab.
"""

import json
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import kvorum
from bench.rows import Row, table
from clusterfs.raft import records, segments
from clusterfs.raft.files import LocalFiles
from ha.leases import PROFILES
from kvorum.errors import KvorumError
from kvorum.node import AGENT_SOCKET
from kvorum.v1 import guest_pb2
from lab.cluster import Lab
from lab.node import Node

BAR_MB = 5.0
SETTLE_S = 25.0
PATIENCE_S = 90.0
UNITS = ("kvorum-clusterfs", "kvorum-ha", "kvorum-keeper")
RAFT = Path("/var/lib/kvorum/clusterfs/raft")
SETTINGS = {
    "name": "micro",
    "memory": "16",
    "balloon": "0",
    "scsihw": "virtio-scsi-pci",
    "serial0": "socket",
    "vga": "none",
    "scsi0": "shared:0,import-from=/srv/shared/images/micro.raw,format=raw",
}
# On the node: what each of the units, children included, has caused to be written since it began.
_LOOK = """
import json, pathlib, sys
found = dict.fromkeys(sys.argv[1:], 0)
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (process / "cmdline").read_bytes().decode().split("\\0")
        lines = (process / "io").read_text().splitlines()
    except OSError:
        continue
    for unit in found:
        if any(word.endswith("/" + unit) for word in words):
            found[unit] += int(next(line for line in lines if line.startswith("write_bytes")).split()[1])
print(json.dumps(found))
"""


@contextmanager
def armed(profile: str) -> Iterator[Lab]:
    """Three nodes, one guest under HA, which runs."""
    with Lab(f"bhi{secrets.token_hex(2)}") as lab:
        lab.up(3)
        one = lab.node("n1")
        with kvorum.connect(f"unix:{one.path(AGENT_SOCKET)}", timeout_s=30.0) as client:
            client.tasks.wait(client.guests.create(100, guest_pb2.GUEST_KIND_VM, SETTINGS, node="n1"))
            one.run(["sh", "-c", f"mkdir -p /etc/kvorum/ha && echo profile: {profile} >/etc/kvorum/ha/settings.cfg"])
            client.ha.add("vm:100")
            _until_started(client)
        yield lab


def _until_started(client: kvorum.Client) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if any(resource.state == "started" for resource in client.ha.resources()):
                return
        except KvorumError:
            pass
        time.sleep(0.5)
    raise SystemExit("the guest did not start under HA")


def written(node: Node) -> dict[str, int]:
    found: dict[str, int] = json.loads(node.run([sys.executable, "-c", _LOOK, *UNITS]).stdout)
    return found


@dataclass(frozen=True, slots=True)
class LogEnd:
    """How many groups the log of a running node has seen, how many entries, and how many bytes all of its segments have."""

    groups: int
    entries: int
    size_bytes: int


def log_end(node: Node) -> LogEnd:
    found = list(segments.read(LocalFiles(node.path(RAFT))))
    scan = found[-1].scan
    entries = [record for record, _ in scan.records if record.kind is records.Kind.entry]
    return LogEnd(scan.batch, records.place(entries[-1].body).index, sum(segment.scan.end for segment in found))


def measured(nodes: Sequence[Node], seconds: float) -> list[dict[str, Any]]:
    """Of each node: megabytes an hour by unit, groups and entries."""
    before = [(written(node), log_end(node)) for node in nodes]
    begin = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begin
    after = [(written(node), log_end(node)) for node in nodes]
    return [
        {
            "node": node.name,
            "mb_per_h": {unit: (end[unit] - start[unit]) / took * 3600 / 1e6 for unit in UNITS},
            "zeros_mb_per_h": (end_log.size_bytes - start_log.size_bytes) / took * 3600 / 1e6,
            "groups": end_log.groups - start_log.groups,
            "entries": end_log.entries - start_log.entries,
            "took_s": took,
        }
        for node, (start, start_log), (end, end_log) in zip(nodes, before, after, strict=True)
    ]


def rows(profile: str, found: Sequence[dict[str, Any]]) -> Iterator[Row]:
    def total_of(one: dict[str, Any]) -> float:
        return float(sum(one["mb_per_h"].values()) + one["zeros_mb_per_h"])

    worst = max(found, key=total_of)
    total, took = total_of(worst), worst["took_s"]
    has_bar = profile == "normal"
    yield Row(
        group="ha idle",
        name=f"disk writes, one guest under HA, profile {profile}, {took:.0f} s extrapolated: worst node",
        ours=f"{total:.2f} MB/h",
        bar=f"<= {BAR_MB:g} MB/h" if has_bar else "",
        is_met=total <= BAR_MB if has_bar else None,
        figures={"mb_per_h": total, "watched_s": took},
    )
    for unit in UNITS:
        yield Row(group="ha idle", name=f"of that {unit}", ours=f"{worst['mb_per_h'][unit]:.2f} MB/h")
    yield Row(group="ha idle", name="of that zeros for the log, beforehand", ours=f"{worst['zeros_mb_per_h']:.2f} MB/h")
    intervals = took / PROFILES[profile].renew_period_s
    yield Row(
        group="ha idle",
        name="groups of the log in an interval of renewals (entries)",
        ours=f"{worst['groups'] / intervals:.2f} ({worst['entries'] / intervals:.2f})",
    )


@click.command()
@click.option("--profile", type=click.Choice(sorted(PROFILES)), default="normal", show_default=True)
@click.option("--seconds", type=click.FloatRange(min=10.0), default=120.0, show_default=True, help="To watch for.")
def main(profile: str, seconds: float) -> None:
    """Measure what a quiet HA writes. Needs root."""
    with armed(profile) as lab:
        time.sleep(SETTLE_S)
        found = measured(lab.nodes, seconds)
    for one in found:
        print(json.dumps(one))
    print(table(list(rows(profile, found))))
    sys.exit(0)


if __name__ == "__main__":
    main()
