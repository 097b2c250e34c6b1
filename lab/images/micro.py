"""Builds the micro guest: a 1 MiB raw disk with our boot sector. See micro.S for what it does."""

from pathlib import Path

from kvorum.errors import CommandFailed
from lab import programs
from lab.images import cache

DISK_BYTES = 2**20
_SOURCE = cache.SOURCES / "micro.S"


def build() -> Path:
    """The disk image; not to be booted in place, but copied."""
    return cache.built(cache.place("micro", cache.key([_SOURCE, Path(__file__)])), _assemble) / "micro.raw"


def _assemble(directory: Path) -> None:
    part, binary = directory / "micro.o", directory / "micro.bin"
    programs.run(["as", "--32", "-o", str(part), str(_SOURCE)])
    programs.run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", str(binary), str(part)])
    sector = binary.read_bytes()
    if len(sector) != 512 or sector[510:] != b"\x55\xaa":
        raise CommandFailed(f"the micro guest is no boot sector: {len(sector)} bytes")
    (directory / "micro.raw").write_bytes(sector.ljust(DISK_BYTES, b"\0"))
    part.unlink()
    binary.unlink()
