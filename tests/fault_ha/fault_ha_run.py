"""`make fault-ha`: three real nodes, the one with the guests is struck again and again; then a verdict over all that was seen.

    make fault-ha                               each kind of strike ten times, half in profile fast, half in normal
    make fault-ha ROUNDS=2 PROFILE=fast SEED=7

Needs root. Everything it makes is the lab's and goes with it, however this ends; what a killed run left, the next one removes.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
for place in (HERE, HERE.parent, HERE.parents[1]):
    sys.path.insert(0, str(place))

import ha_guests  # noqa: E402
from array_control import StorageArray  # noqa: E402
from ha_cluster import Cluster  # noqa: E402
from ha_stamps import faults as stamp_faults  # noqa: E402
from ha_strikes import Striker, order  # noqa: E402
from ha_verdict import Kind, Strike, faults, missed_bars, plan, table  # noqa: E402

from kvorum.errors import KvorumError  # noqa: E402
from lab.cluster import Lab  # noqa: E402
from lab.single_run import SingleRunWatch  # noqa: E402

# A watcher that looks less often than this has seen too little.
LOOKS_PER_S = 4.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="how often each kind strikes")
    parser.add_argument("--profile", choices=("fast", "normal", "both"), default="both")
    parser.add_argument("--seed", type=int, default=None, help="of the order and the moments")
    parser.add_argument("--only", choices=list(Kind), action="append", default=None, help="this kind; may be repeated")
    parser.add_argument("--name", default="faultha", help="of the lab")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    asked = {
        key: count for key, count in plan(options.rounds, options.profile).items() if key[1] in (options.only or Kind)
    }
    signal.signal(signal.SIGTERM, _interrupt)
    print(f"{sum(asked.values())} strikes, seed {seed}", flush=True)
    trial = Trial(asked, seed)
    lab = Lab(options.name)
    lab.down()  # what an interrupted run left
    try:
        trial.run(lab)
    except KeyboardInterrupt:
        trial.broken = "interrupted"
    except (KvorumError, OSError, AssertionError) as error:
        traceback.print_exc()
        trial.broken = f"the trial ended early: {error}"
    finally:
        found = trial.judge()
        if found:
            print(f"the logs are kept in {keep_logs(lab)}", flush=True)
        lab.down()
    if left := lab.leftovers():
        found.append(f"left behind: {', '.join(map(str, left))}")
        print(f"FAULT: {found[-1]}")
    return 1 if found else 0


class Trial:
    def __init__(self, asked: dict[tuple[str, Kind], int], seed: int) -> None:
        self._asked, self._luck = asked, random.Random(seed)
        self._begin = time.monotonic()
        self.strikes: list[Strike] = []
        # What is not of one strike.
        self.others: list[str] = []
        self.broken = ""

    def run(self, lab: Lab) -> None:
        lab.up(3)
        array = StorageArray(lab)
        ha_guests.make(lab, array)
        with SingleRunWatch(lab.layout) as watch:
            cluster = Cluster(lab, array, watch)
            striker = Striker(cluster, self._luck)
            begin, profile = time.monotonic(), ""
            self._tell("three nodes, their guests under HA")
            try:
                for number, planned in enumerate(order(self._asked, self._luck), start=1):
                    if planned.profile != profile:
                        profile = planned.profile
                        lab.nodes[0].run(["kvorum", "ha", "profile", profile])
                        cluster.wait_well(profile=profile)
                    since = time.monotonic()
                    strike = striker.strike(planned)
                    self.strikes.append(strike)
                    self._tell(
                        f"{number:3}  {profile:6}  {told(strike)}  (all well again after {time.monotonic() - since:.1f} s)"
                    )
            finally:
                looks, took_s = len(watch.samples), time.monotonic() - begin
                entries = array.entries()
                # Over all of it, once more: between the strikes, too, nothing may have run twice.
                self.others += [*watch.doubles, *stamp_faults(entries)]
                if looks < LOOKS_PER_S * took_s:
                    self.others.append(f"the watcher looked only {looks} times in {took_s:.0f} s")
                stamped = Counter(entry.vmid for entry in entries if entry.boot)
                self._tell(f"{looks} looks at all processes; stamps by guest: {dict(sorted(stamped.items()))}")

    def judge(self) -> list[str]:
        """Prints the table and the faults, which it returns."""
        print("\n".join(table(self.strikes)))
        found = [
            *faults(self.strikes, self._asked, ha_guests.SIDS),
            *self.others,
            *([self.broken] if self.broken else []),
        ]
        for fault in found:
            print(f"FAULT: {fault}")
        if not found:
            late = len(missed_bars(self.strikes))
            print(
                "no guest ran twice, none was lost, nothing was fenced for nothing"
                + (f"; {late} bars missed" if late else "")
            )
        return found

    def _tell(self, line: str) -> None:
        print(f"[{time.monotonic() - self._begin:7.1f} s] {time.strftime('%H:%M:%S')}  {line}", flush=True)


def told(strike: Strike) -> str:
    """A strike in one line."""
    samples = []
    for one in strike.samples:
        running = "" if one.running_s is None else f"{one.running_s:.1f} s, "
        samples.append(f"{one.sid} {running}{'NO STAMP' if one.stamped_s is None else f'stamp {one.stamped_s:.1f} s'}")
    wrong = [
        *strike.doubles,
        *(f"{sid} LOST" for sid in strike.lost),
        *(f"{n} LOST ITS LEASE" for n in strike.needless),
        *strike.faults,
    ]
    return f"{strike.kind:23}  {strike.victim}  {'; '.join(samples)}{''.join(f'  !! {line}' for line in wrong)}"


def keep_logs(lab: Lab) -> Path:
    """Of all nodes and of what stands around them."""
    kept = Path(tempfile.mkdtemp(prefix="kvorum-fault-ha-"))
    layout = lab.layout
    with suppress(OSError, KvorumError):
        for node in lab.nodes:
            with suppress(OSError):
                shutil.copytree(node.layout.disk / "var/log", kept / node.name, dirs_exist_ok=True)
                shutil.copy(node.layout.console_log, kept / node.name)
        for path in (layout.watchdog_log, layout.directory / "array/journal", layout.directory / "array/log"):
            with suppress(OSError):
                shutil.copy(path, kept)
    return kept


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
