"""`make bench-store`: the store's figures beside its bars, interleaved with etcd on the same disk. One table, and JSON.

Ends with 0 when it ran, whatever the figures; with 1 when something broke or an acknowledged write was lost. Everything is on
loopback addresses and below one temporary directory, and nothing of it is left.
"""

import datetime
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType

import click

from bench import bulk, calm, commit, failover, idle, mount, stalls
from bench.rows import Row, as_json, table
from bench.run import Group, Run

GROUPS: dict[str, Group] = {
    "commit": commit.rows,
    "failover": failover.rows,
    "stalls": stalls.rows,
    "bulk": bulk.rows,
    "idle": idle.rows,
    "mount": mount.rows,
    "calm": calm.rows,
}
ON_DEMAND = {"calm"}
RESULTS = Path(__file__).parent / "results"


@click.command()
@click.option(
    "--only",
    default=",".join(name for name in GROUPS if name not in ON_DEMAND),
    show_default=True,
    help="Which groups of rows, by commas; calm (half an hour on a crowded machine) only on demand.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Pairs of bursts.")
@click.option("--minutes", type=click.FloatRange(min=0.5), default=30.0, show_default=True, help="Of calm.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("/var/tmp"),  # noqa: S108 - on a disk, unlike /tmp on many machines
    show_default=True,
    help="On the disk to measure on.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Where the figures go [bench/results/].")
def main(only: str, rounds: int, minutes: float, directory: Path, json_file: Path | None) -> None:
    """Measure the store against its bars and etcd. Needs root, FUSE and etcd."""
    unknown = set(names := only.split(",")) - set(GROUPS)
    if unknown:
        raise click.UsageError(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    signal.signal(signal.SIGTERM, _stop)
    begin = datetime.datetime.now(datetime.UTC)
    loads = [os.getloadavg()[0]]
    place = Path(tempfile.mkdtemp(prefix="kvorum-bench-", dir=directory))
    run = Run(place, rounds=rounds, minutes=minutes)
    found: list[Row] = []
    broken: list[str] = []
    try:
        for name in names:
            try:
                found.extend(GROUPS[name](run))
            except Exception:
                # The others still have something to say.
                traceback.print_exc()
                broken.append(name)
            loads.append(os.getloadavg()[0])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    about = f"{begin:%Y-%m-%d %H:%M} UTC, {os.cpu_count()} CPUs, load average {min(loads):.1f} to {max(loads):.1f}"
    print(f"\n{about}; {rounds} pairs\n\n{table(found)}")
    target = json_file or RESULTS / f"store-{begin:%Y%m%dT%H%M%S}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "begin": begin.isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        "load_averages": loads,
        "rounds": rounds,
        "rows": as_json(found),
        "broken": broken,
    }
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nfigures: {target}")
    if broken:
        print(f"BROKEN: {', '.join(broken)}", file=sys.stderr)
    sys.exit(1 if broken else 0)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM cleans up too."""
    raise SystemExit(143)


if __name__ == "__main__":
    main()
