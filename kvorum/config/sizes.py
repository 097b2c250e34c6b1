"""Sizes as Proxmox VE's files write them, to bytes and back.

The same number means different things in different places: `size=4` of a disk is 4 bytes, `local:4` asks for a new volume of
4 GiB, `memory: 512` is 512 MiB. The caller says which by `unit`; a suffix always wins.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from kvorum.errors import ConfigError

KIB = 1024
MIB = 1024**2
GIB = 1024**3
TIB = 1024**4

_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?)([KMGT]?)", re.IGNORECASE)
_NEW_VOLUME = re.compile(r"([a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]):([0-9]{1,9}(?:\.[0-9]{1,9})?[KMGT]?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NewVolume:
    """The wish for a volume, `local:4`, in the place of one that exists."""

    storage: str
    size_bytes: int


def parse_size(text: str, *, unit: int = 1, field: str = "") -> int:
    """Bytes, rounded up. `unit` is what a number without a suffix counts. Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size", field=field, remedy="write a number with K, M, G or T, as in 4G")
    factor = _UNITS[match[2].upper()] if match[2] else unit
    exact = Fraction(match[1]) * factor
    return -(-exact.numerator // exact.denominator)


def render_size(size_bytes: int) -> str:
    """With the largest suffix that loses nothing: 4294967296 -> `4G`, 1000 -> `1000`."""
    assert size_bytes >= 0
    for suffix in "TGMK":
        factor = _UNITS[suffix]
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{suffix}"
    return str(size_bytes)


def parse_new_volume(text: str, *, field: str = "") -> NewVolume | None:
    """`local:4` (GiB, or with a suffix) -> the wish; None when `text` names a volume that exists, or none."""
    match = _NEW_VOLUME.fullmatch(text.strip())
    if match is None:
        return None
    return NewVolume(match[1], parse_size(match[2], unit=GIB, field=field))
