"""Which accelerator guests get. Found by booting something: that /dev/kvm opens proves nothing.

Inside some virtual machines KVM opens, creates virtual CPUs and then runs ordinary code a thousand times slower than
the emulator (shadow paging, paravirtual-only KVM). So a boot sector of 20 bytes must end within a few seconds of CPU
time. What an accelerator means for a guest's XML is for `domain_xml`.
"""

import os
import tempfile
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from agent.processes import run
from kvorum.errors import CommandFailed, InvalidInput, Timeout
from kvorum.node import RUN, write_atomically

Accel: TypeAlias = Literal["kvm", "tcg"]

EMULATOR = Path("/usr/bin/qemu-system-x86_64")
CACHE = RUN / "accel.json"
# A machine with working KVM takes 0.1 s of CPU time, firmware included.
CPU_LIMIT_S = 3
# A probe that starved on a loaded machine is no verdict until then.
WALL_LIMIT_S = 15.0

#   7c00  66 b9 00 2d 31 01  mov  ecx, 20000000   a loop, so that slow execution shows: 10 ms natively, 0.1 s emulated by
#   7c06  66 49              dec  ecx              TCG, half a minute where KVM takes one instruction at a time
#   7c08  75 fc              jnz  7c06
#   7c0a  ba f4 00           mov  dx, 0xf4         the port of isa-debug-exit
#   7c0d  b0 31              mov  al, 0x31
#   7c0f  ee                 out  dx, al           QEMU exits with 2 * 0x31 + 1
#   7c10  fa                 cli
#   7c11  f4                 hlt
#   7c12  eb fd              jmp  7c11
_CODE = bytes.fromhex("66b9002d3101 6649 75fc baf400 b031 ee fa f4 ebfd")
BOOT_SECTOR = _CODE.ljust(510, b"\0") + b"\x55\xaa"
EXIT_CODE = 2 * 0x31 + 1


class _Cached(msgspec.Struct, frozen=True):
    accel: Accel
    # Kernel and emulator that it was found with.
    subject: str


async def choose(setting: str = "auto", *, cache: Path = CACHE, emulator: Path = EMULATOR) -> Accel:
    """`kvm` and `tcg` are taken as said; `auto` probes once per boot, kernel and emulator."""
    if setting in ("kvm", "tcg"):
        return "kvm" if setting == "kvm" else "tcg"
    if setting != "auto":
        raise InvalidInput(f"{setting!r} is no accelerator", field="accel", remedy="use auto, kvm or tcg")
    subject = _subject(emulator)
    known = _read(cache)
    if known is not None and known.subject == subject:
        return known.accel
    accel = await probe(emulator=emulator)
    write_atomically(cache, msgspec.json.encode(_Cached(accel, subject)))
    return accel


async def probe(*, emulator: Path = EMULATOR, device: Path = Path("/dev/kvm")) -> Accel:
    """Boots the sector under KVM. Takes up to a few seconds; what goes wrong means `tcg`."""
    if not os.access(device, os.R_OK | os.W_OK):
        return "tcg"
    return "kvm" if await boots(emulator, "kvm") else "tcg"


async def boots(emulator: Path, accel: str) -> bool:
    """Whether the boot sector ran to its end within the limits."""
    with tempfile.NamedTemporaryFile(prefix="kvorum-probe-") as image:
        image.write(BOOT_SECTOR)
        image.flush()
        try:
            done = await run(_command(emulator, accel, image.name), timeout_s=WALL_LIMIT_S, ok_codes=range(-64, 256))
        except (CommandFailed, Timeout):
            return False
        return done.returncode == EXIT_CODE


def _command(emulator: Path, accel: str, image: str) -> list[str]:
    # A CPU model that every host can show: `host` aborts on some nested ones.
    machine = ["-machine", f"pc,accel={accel}", "-cpu", "qemu64", "-m", "2", "-nodefaults", "-no-user-config"]
    drive = ["-drive", f"file={image},format=raw,if=ide,readonly=off,snapshot=on"]
    exit_device = ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x01"]
    # The kernel kills it at the limit of CPU time (SIGXCPU).
    return [
        "prlimit",
        f"--cpu={CPU_LIMIT_S}:{CPU_LIMIT_S + 1}",
        "--core=0",
        str(emulator),
        *machine,
        "-display",
        "none",
        "-no-reboot",
        *drive,
        *exit_device,
    ]


def _subject(emulator: Path) -> str:
    try:
        state = emulator.stat()
    except OSError:
        return f"{os.uname().release} none"
    return f"{os.uname().release} {state.st_size} {state.st_mtime_ns}"


def _read(cache: Path) -> _Cached | None:
    try:
        return msgspec.json.decode(cache.read_bytes(), type=_Cached)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
