"""Files made of sections: storage.cfg, ha/resources.cfg, ha/rules.cfg and their like, in Proxmox VE's format.

    dir: local
        path /var/lib/vz
        content images,rootdir

A header `type: id` begins a section, indented `key value` lines follow, a blank line or the next header ends it; `#` begins a
comment. Values never change; `with_section` and `without` make new ones. Everything else in the file survives as it was.
What types and keys exist is for the room that owns the file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from kvorum.config.lines import BLANKS, Line, check_value, decode, split, terminated
from kvorum.config.properties import parse_bool, parse_int, split_list
from kvorum.errors import ConfigError, InvalidInput

_TYPE = r"[A-Za-z][A-Za-z0-9_-]*"
_ID = r"[A-Za-z0-9][A-Za-z0-9_.:@+-]*"
_HEADER = re.compile(rf"({_TYPE}):[ \t]*({_ID})[ \t\r]*")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_ENTRY = re.compile(rf"[ \t]+({_KEY.pattern})(?:[ \t]+(.*))?[ \t\r]*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Section(Mapping[str, str]):
    """`type: id` with its keys. `lines` holds the header, the entries, and blanks and comments up to the next section."""

    type: str
    id: str
    lines: tuple[Line, ...]

    @classmethod
    def of(cls, type_: str, id_: str, entries: Mapping[str, str]) -> "Section":
        """A new section. Raises InvalidInput for what the format cannot hold."""
        if not _HEADER.fullmatch(f"{type_}: {id_}"):
            raise InvalidInput(f"'{type_}: {id_}' cannot head a section", field="id")
        section = cls(type_, id_, (Line(f"{type_}: {id_}\n"),))
        for key, value in entries.items():
            section = section.set(key, value)
        return section

    def __getitem__(self, key: str) -> str:
        for line in reversed(self.lines):
            if line.key == key and key:
                return line.value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(line.key for line in self.lines if line.key))

    def __len__(self) -> int:
        return len({line.key for line in self.lines if line.key})

    def require(self, key: str) -> str:
        """Raises ConfigError that names the section when the key is missing or empty."""
        if value := self.get(key):
            return value
        raise ConfigError(
            f"{self.type} '{self.id}' lacks '{key}'", field=key, remedy=f"add a line '\t{key} VALUE' to the section"
        )

    def get_bool(self, key: str, default: bool = False) -> bool:
        """A key alone on its line means yes, as in Proxmox VE."""
        value = self.get(key)
        if value is None:
            return default
        return parse_bool(value, field=key) if value else True

    def get_int(self, key: str, default: int) -> int:
        value = self.get(key)
        return default if value is None else parse_int(value, field=key)

    def get_list(self, key: str) -> list[str]:
        return split_list(self.get(key, ""))

    def set(self, key: str, value: str) -> "Section":
        """The same with `key value`, in its old place or after the last key."""
        if not _KEY.fullmatch(key):
            raise InvalidInput(f"{key!r} is no configuration key", field=key)
        value = check_value(value, field=key)
        line = Line(f"\t{key} {value}\n" if value else f"\t{key}\n", key, value)
        places = [index for index, old in enumerate(self.lines) if old.key == key]
        if places:
            if len(places) == 1 and self.lines[places[0]].value == value:
                return self
            kept = (
                line if index == places[-1] else old for index, old in enumerate(self.lines) if index not in places[:-1]
            )
            return replace(self, lines=tuple(kept))
        end = max((index + 1 for index, old in enumerate(self.lines) if old.key), default=1)
        return replace(self, lines=(*terminated(self.lines[:end]), line, *self.lines[end:]))

    def without(self, *keys: str) -> "Section":
        """The same without these keys; keys that are not there are no error."""
        return replace(self, lines=tuple(line for line in self.lines if not line.key or line.key not in keys))


@dataclass(frozen=True, slots=True)
class SectionConfig:
    """A whole file; `head` is what stands before the first section."""

    sections: tuple[Section, ...] = ()
    head: tuple[Line, ...] = ()

    @classmethod
    def parse(cls, text: str | bytes, path: str = "") -> "SectionConfig":
        """Raises ConfigError (with path and line) for a line that fits nowhere and for a section that is there twice."""
        blocks: list[tuple[str, str, list[Line]]] = [("", "", [])]
        is_open = False
        for number, raw in enumerate(split(decode(text, path=path)), start=1):
            line = raw.removesuffix("\n")
            if not line.strip(BLANKS):
                is_open = False
                blocks[-1][2].append(Line(raw))
            elif line.lstrip(BLANKS).startswith("#"):
                blocks[-1][2].append(Line(raw))
            elif header := _HEADER.fullmatch(line):
                if any((type_, id_) == (header[1], header[2]) for type_, id_, _ in blocks):
                    raise ConfigError(f"section '{header[1]}: {header[2]}' is there twice", path=path, line=number)
                blocks.append((header[1], header[2], [Line(raw)]))
                is_open = True
            elif is_open and (entry := _ENTRY.fullmatch(line)):
                blocks[-1][2].append(Line(raw, entry[1], (entry[2] or "").strip(BLANKS)))
            else:
                expected = "'TYPE: ID' or an indented 'key value'" if is_open else "'TYPE: ID'"
                raise ConfigError(f"expected {expected}, found {line[:60]!r}", path=path, line=number)
        return cls(tuple(Section(type_, id_, tuple(lines)) for type_, id_, lines in blocks[1:]), tuple(blocks[0][2]))

    def render(self) -> str:
        """The text of the file. `parse(config.render()) == config`, and what was parsed unchanged renders as it was."""
        lines = [*self.head, *(line for section in self.sections for line in section.lines)]
        return "".join(line.raw for line in lines)

    def __iter__(self) -> Iterator[Section]:
        return iter(self.sections)

    def __len__(self) -> int:
        return len(self.sections)

    def find(self, id_: str, type_: str = "") -> Section | None:
        """The section with this id, of this type if one is given."""
        return next((s for s in self.sections if s.id == id_ and (not type_ or s.type == type_)), None)

    def of_type(self, type_: str) -> tuple[Section, ...]:
        return tuple(section for section in self.sections if section.type == type_)

    def with_section(self, section: Section) -> "SectionConfig":
        """The same with this section, in the place of the one with its type and id or at the end after a blank line."""
        if self.find(section.id, section.type) is not None:
            changed = (section if (s.type, s.id) == (section.type, section.id) else s for s in self.sections)
            sections = [replace(s, lines=terminated(s.lines)) for s in changed]
            return replace(self, sections=tuple(sections))
        if not self.sections:
            return replace(self, head=terminated(self.head), sections=(section,))
        last = self.sections[-1]
        lines = terminated(last.lines)
        if lines[-1].raw.strip(BLANKS + "\n"):
            lines = (*lines, Line("\n"))
        return replace(self, sections=(*self.sections[:-1], replace(last, lines=lines), section))

    def without(self, id_: str, type_: str = "") -> "SectionConfig":
        """The same without the sections of this id (and type); none there is no error."""
        return replace(self, sections=tuple(s for s in self.sections if s.id != id_ or (type_ and s.type != type_)))
