"""A guest's configuration file, `<vmid>.conf`, in Proxmox VE's format.

    #a description, percent-encoded, in the lines that begin with #
    cores: 2
    scsi0: local:100/vm-100-disk-0.qcow2,size=4G

    [before-upgrade]
    cores: 1

Keys of the guest come first; each `[section]` holds the keys as they were at a snapshot (or `[PENDING]` changes). A value of
GuestConfig never changes; `set` and `without` make new ones. Order, comments, blanks and keys that we do not know survive.
What the keys mean is for the drivers; this module knows only the shape of the file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import quote, unquote

from kvorum.config.lines import BLANKS, Line, check_value, decode, split, terminated
from kvorum.errors import ConfigError, InvalidInput

_KEY = r"[A-Za-z][A-Za-z0-9_.-]*"
_ENTRY = re.compile(rf"[ \t]*({_KEY})[ \t]*:(.*)", re.DOTALL)
# Only liblxc's own keys may be written in liblxc's way, `lxc.cap.drop = sys_time`.
_LXC_ENTRY = re.compile(r"[ \t]*(lxc\.[A-Za-z0-9_.-]+)[ \t]*=(.*)", re.DOTALL)
_SECTION = re.compile(r"\[([A-Za-z][A-Za-z0-9_:.-]*)\][ \t\r]*")
_NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]*)")

# Sections that are no snapshots.
PENDING = "PENDING"
SPECIAL_PREFIX = "special:"

VM_DISK_KEY = re.compile(r"(?:ide|sata|scsi|virtio|efidisk|tpmstate)(?:0|[1-9][0-9]*)")
CONTAINER_VOLUME_KEY = re.compile(r"rootfs|mp(?:0|[1-9][0-9]*)")
UNUSED_KEY = re.compile(r"unused(?:0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class Entries(Mapping[str, str]):
    """Keys and values of one block of the file. Where a key is repeated, the last one counts."""

    lines: tuple[Line, ...] = ()

    def __getitem__(self, key: str) -> str:
        for line in reversed(self.lines):
            if line.key == key and key:
                return line.value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(line.key for line in self.lines if line.key))

    def __len__(self) -> int:
        return len({line.key for line in self.lines if line.key})

    def pairs(self) -> list[tuple[str, str]]:
        """Every entry in file order, repeated keys (`lxc.mount.entry`) included."""
        return [(line.key, line.value) for line in self.lines if line.key]

    def numbered(self, prefix: str) -> dict[int, str]:
        """`net0`, `net1` for `net`, as {0: ..., 1: ...} in the order of their numbers."""
        found = {}
        for key, value in self.items():
            match = _NUMBERED.fullmatch(key)
            if match and match[1] == prefix:
                found[int(match[2])] = value
        return dict(sorted(found.items()))

    @property
    def description(self) -> str:
        """The text in the `#` lines, decoded; empty when there is none."""
        return "\n".join(unquote(_comment(line)) for line in self.lines if _is_comment(line))

    def set(self, key: str, value: str) -> Self:
        """The same with `key: value`, in its old place or after the last key. Raises InvalidInput for what no line can hold."""
        if not re.fullmatch(_KEY, key):
            raise InvalidInput(f"{key!r} is no configuration key", field=key)
        value = check_value(value, field=key)
        line = Line(f"{key}: {value}\n" if value else f"{key}:\n", key, value)
        places = [index for index, old in enumerate(self.lines) if old.key == key]
        if not places:
            return replace(self, lines=_insert(self.lines, line))
        if len(places) == 1 and self.lines[places[0]].value == value:
            return self
        kept = [
            line if index == places[-1] else old for index, old in enumerate(self.lines) if index not in places[:-1]
        ]
        return replace(self, lines=tuple(kept))

    def without(self, *keys: str) -> Self:
        """The same without these keys; keys that are not there are no error."""
        return replace(self, lines=tuple(line for line in self.lines if not line.key or line.key not in keys))

    def with_description(self, text: str) -> Self:
        """The same with this description at the top, instead of any other comment."""
        encoded = [quote(part, safe=" !\"#$&'()*+,-./;<=>?@[\\]^_`{|}~") for part in text.split("\n")] if text else []
        comments = tuple(Line(f"#{part}\n") for part in encoded)
        return replace(self, lines=comments + tuple(line for line in self.lines if not _is_comment(line)))


@dataclass(frozen=True, slots=True)
class Section(Entries):
    """`[name]` and what follows it; `header` is the line as written."""

    name: str = ""
    header: str = ""


@dataclass(frozen=True, slots=True)
class GuestConfig(Entries):
    """A whole file; as a mapping, the guest's present keys (not those of its snapshots)."""

    sections: tuple[Section, ...] = ()

    @classmethod
    def parse(cls, text: str | bytes, path: str = "") -> "GuestConfig":
        """Raises ConfigError (with path and line) for a line that is neither comment, entry nor section."""
        blocks: list[tuple[str, str, list[Line]]] = [("", "", [])]
        for number, raw in enumerate(split(decode(text, path=path)), start=1):
            header = _SECTION.fullmatch(raw.removesuffix("\n"))
            if header is None:
                blocks[-1][2].append(_parse_line(raw, path=path, number=number))
            elif any(header[1] == name for name, _, _ in blocks):
                raise ConfigError(f"section [{header[1]}] is there twice", path=path, line=number)
            else:
                blocks.append((header[1], raw, []))
        sections = tuple(Section(tuple(lines), name, header) for name, header, lines in blocks[1:])
        return cls(tuple(blocks[0][2]), sections)

    def render(self) -> str:
        """The text of the file. `parse(config.render()) == config`, and what was parsed unchanged renders as it was."""
        parts = [line.raw for line in self.lines]
        for section in self.sections:
            parts += [section.header, *(line.raw for line in section.lines)]
        return "".join(parts)

    @property
    def snapshots(self) -> tuple[str, ...]:
        names = (section.name for section in self.sections)
        return tuple(name for name in names if name != PENDING and not name.startswith(SPECIAL_PREFIX))

    def section(self, name: str) -> Section | None:
        return next((section for section in self.sections if section.name == name), None)

    def with_section(self, name: str, entries: Mapping[str, str]) -> "GuestConfig":
        """The same with `[name]` holding exactly these entries, in its old place or at the end."""
        header = f"[{name}]\n"
        if not _SECTION.fullmatch(header.removesuffix("\n")):
            raise InvalidInput(f"{name!r} cannot name a section", field=name)
        section = Section((), name, header)
        for key, value in entries.items():
            section = section.set(key, value)
        if self.section(name) is not None:
            changed = tuple(section if old.name == name else old for old in self.sections)
            return replace(self, sections=_spaced(changed))
        return replace(self, lines=_blank_after(self.lines), sections=_spaced((*self.sections, section)))

    def without_section(self, name: str) -> "GuestConfig":
        return replace(self, sections=tuple(section for section in self.sections if section.name != name))

    @classmethod
    def of(cls, entries: Mapping[str, str]) -> "GuestConfig":
        """A new file with these keys. Raises InvalidInput for what no line can hold."""
        config = cls()
        for key, value in entries.items():
            config = config.set(key, value)
        return config


def _parse_line(raw: str, *, path: str, number: int) -> Line:
    text = raw.removesuffix("\n")
    if text.startswith("#") or not text.strip(BLANKS):
        return Line(raw)
    match = _LXC_ENTRY.fullmatch(text) or _ENTRY.fullmatch(text)
    if match is None:
        raise ConfigError(f"expected 'key: value', found {text[:60]!r}", path=path, line=number)
    return Line(raw, match[1], match[2].strip(BLANKS))


def _is_comment(line: Line) -> bool:
    return line.raw.startswith("#")


def _comment(line: Line) -> str:
    return line.raw[1:].removesuffix("\n").rstrip("\r")


def _insert(lines: tuple[Line, ...], new: Line) -> tuple[Line, ...]:
    """After the last entry or comment, before the blank lines that set off what follows."""
    end = len(lines)
    while end and not lines[end - 1].raw.strip(BLANKS + "\n"):
        end -= 1
    return (*terminated(lines[:end]), new, *lines[end:])


def _blank_after(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    lines = terminated(lines)
    if not lines or not lines[-1].raw.strip(BLANKS + "\n"):
        return lines
    return (*lines, Line("\n"))


def _spaced(sections: tuple[Section, ...]) -> tuple[Section, ...]:
    """Every section but the last ends with a blank line, so that people can read the file."""
    head = tuple(
        replace(section, header=f"{section.header.removesuffix(chr(10))}\n", lines=_blank_after(section.lines))
        for section in sections[:-1]
    )
    return (*head, *sections[-1:])
