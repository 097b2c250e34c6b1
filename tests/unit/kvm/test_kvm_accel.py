"""The probe: its boot sector on the real emulator, its verdicts on pretended ones."""

from pathlib import Path

import pytest

from agent.guests import accel
from kvorum.errors import InvalidInput


def pretended(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


async def test_the_boot_sector_runs_to_its_end_on_an_emulated_machine() -> None:
    assert len(accel.BOOT_SECTOR) == 512
    assert await accel.boots(accel.EMULATOR, "tcg")


async def test_no_kvm_device_means_emulation(tmp_path: Path) -> None:
    assert await accel.probe(device=tmp_path / "kvm") == "tcg"


@pytest.mark.parametrize(
    ("script", "verdict"), [(f"exit {accel.EXIT_CODE}", "kvm"), ("exit 0", "tcg"), ("exit 1", "tcg")]
)
async def test_only_the_guests_own_exit_code_is_success(tmp_path: Path, script: str, verdict: str) -> None:
    device = tmp_path / "kvm"
    device.touch()
    assert await accel.probe(emulator=pretended(tmp_path / "qemu", script), device=device) == verdict


async def test_a_machine_that_burns_time_and_gets_nowhere_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "CPU_LIMIT_S", 1)
    assert not await accel.boots(pretended(tmp_path / "qemu", "while :; do :; done"), "kvm")


async def test_a_missing_emulator_means_emulation_without_an_error(tmp_path: Path) -> None:
    assert not await accel.boots(tmp_path / "nothing", "kvm")


async def test_a_verdict_is_kept_for_this_emulator_and_kernel_only(tmp_path: Path) -> None:
    cache = tmp_path / "run" / "accel.json"
    emulator = pretended(tmp_path / "qemu", "exit 1")
    assert await accel.choose("auto", cache=cache, emulator=emulator) == "tcg"
    cache.write_bytes(cache.read_bytes().replace(b"tcg", b"kvm"))
    assert await accel.choose("auto", cache=cache, emulator=emulator) == "kvm"
    pretended(tmp_path / "qemu", "exit 1 # another one")
    assert await accel.choose("auto", cache=cache, emulator=emulator) == "tcg"
    cache.write_text("{")
    assert await accel.choose("auto", cache=cache, emulator=emulator) == "tcg"


async def test_a_person_may_choose(tmp_path: Path) -> None:
    assert await accel.choose("kvm", cache=tmp_path / "x") == "kvm"
    assert await accel.choose("tcg", cache=tmp_path / "x") == "tcg"
    with pytest.raises(InvalidInput):
        await accel.choose("xen", cache=tmp_path / "x")
