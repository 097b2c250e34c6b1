"""A trial that shows nothing does not pass: faults not injected, clients that did nothing, daemons that ended unasked."""

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cluster.small_disk import small_disk
from fault_clients import LEAST_PER_S, Record, idle_faults
from fault_disk import NotSlow, Throttle
from fault_strikes import CUTS, KINDS, LONG, Strikes
from linearizable import Fate, Operation


def record(*, writes: int, reads: int, kept: int = 1) -> Record:
    found = Record(kept={f"k{number}": 0.0 for number in range(kept)})
    for number in range(writes):
        found.add(Operation("k", True, f"v{number}", 0, 1, Fate.done, "a"))
    for _ in range(reads):
        found.add(Operation("k", False, None, 0, 1, Fate.done, "a"))
    return found


def test_everybody_must_have_written_and_read_all_the_time() -> None:
    enough = int(100 * LEAST_PER_S)
    assert idle_faults(record(writes=enough, reads=enough), ["a"], 100.0) == []
    assert idle_faults(record(writes=enough - 1, reads=enough), ["a"], 100.0)
    assert idle_faults(record(writes=enough, reads=enough - 1), ["a"], 100.0)
    assert idle_faults(record(writes=enough, reads=enough, kept=0), ["a"], 100.0)
    assert len(idle_faults(record(writes=enough, reads=enough), ["a", "b"], 100.0)) == 2
    assert idle_faults(Record(), ["a"], 0.0)


def test_a_write_whose_outcome_nobody_knows_is_no_acknowledged_one() -> None:
    found = record(writes=1, reads=1)
    found.add(Operation("k", True, "x", 0, 1, Fate.unknown, "a"))
    found.add(Operation("k", True, "y", 0, 1, Fate.failed, "a"))
    assert found.written == {"a": 1} and len(found.acknowledged_at) == 1


class FakeNetwork:
    dropped = 0

    def heal(self) -> int:
        return self.dropped


def strikes(**node: object) -> Strikes:
    one = SimpleNamespace(
        identity=SimpleNamespace(name="n1"), process=SimpleNamespace(returncode=70), has_ended_by_itself=False,
        is_running=True, thaw=lambda: None, free_disk=lambda: None, restore_disk=lambda: None, start=lambda: None,
    )  # fmt: skip
    vars(one).update(node)
    return Strikes(cast(Any, [one]), cast(Any, FakeNetwork()), random.Random(1), KINDS)


async def test_a_cut_that_stopped_no_packet_was_none() -> None:
    struck = strikes()
    assert struck.faults() == ["nothing was struck"]
    struck.struck["pair cut"] += 1
    await struck.undo("pair cut")
    assert "no packet" in struck.faults()[0]
    FakeNetwork.dropped = 3
    await struck.undo("pair cut")
    assert struck.faults() == []


async def test_a_daemon_that_ended_by_itself_is_told_although_it_is_started_again() -> None:
    struck = strikes(has_ended_by_itself=True, is_running=False)
    struck.struck["node frozen"] += 1
    await struck.undo("node frozen")
    assert struck.faults() == ["n1 ended by itself with 70 (node frozen)"]


def test_the_kinds_with_a_treatment_of_their_own_exist() -> None:
    assert set(KINDS) >= CUTS | LONG


@pytest.mark.cluster
def test_a_throttled_disk_is_slow_and_well_again_afterwards_or_it_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "d", size_mib=64) as disk:
        throttle = Throttle("test")
        process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        try:
            slowed_s = throttle.slow(disk.path, process.pid, writes_per_s=2)
            assert slowed_s > 0.25, "which a quick disk alone would not take"
            throttle.restore()
            assert throttle.slow(disk.path, process.pid, writes_per_s=10**6) < slowed_s
            throttle.restore()
            monkeypatch.setattr(throttle, "_limit", lambda _writes_per_s: None)
            with pytest.raises(NotSlow):
                throttle.slow(disk.path, process.pid, writes_per_s=1)
        finally:
            process.kill()
            process.wait()
            throttle.remove()
