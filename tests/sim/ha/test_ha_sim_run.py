"""Runs of many seeds: what they report, and that a failure is told with how to see it again."""

import pytest

from ha.sim import __main__ as program
from ha.sim import run as runs
from ha.sim.world import Mutation, Outcome, simulate


def test_two_processes_report_what_one_reports() -> None:
    def quiet(_line: str) -> None:
        pass

    alone, together = runs.run(range(40), 1, quiet), runs.run(range(40), 2, quiet)
    assert alone == together
    assert alone.seeds == 40
    assert alone.failures == []
    assert alone.counts["guests: started"] > 40
    assert alone.virtual_s > 40 * 60


def test_a_failing_seed_ends_the_run_with_1_and_is_told_with_its_replay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(seed: int) -> Outcome:
        return simulate(seed, Mutation(rejoins_uncleared=True, shows_uncommitted=seed % 10 == 9))

    monkeypatch.setattr(runs, "simulate", broken)
    monkeypatch.setattr("sys.argv", ["sim", "--seeds", "60", "--jobs", "1"])
    assert program.main() == 1
    said = capsys.readouterr().out
    assert "python -m ha.sim --seed " in said
    assert " FAIL: " in said
    monkeypatch.setattr("sys.argv", ["sim", "--seeds", "5", "--first", "7", "--jobs", "1"])
    monkeypatch.setattr(runs, "simulate", simulate)
    assert program.main() == 0
    assert "5 seeds, all hold" in capsys.readouterr().out


def test_a_run_in_which_everything_fails_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "simulate", lambda seed: Outcome(seed, "S1: both", (), {}, 0.0, 1.0))
    said: list[str] = []
    report = runs.run(range(1000), 1, said.append)
    assert runs.MOST_FAILURES <= len(report.failures) < runs.MOST_FAILURES + runs.CHUNK
    assert said[-1].endswith("the others are left out")
