"""What HA shall keep running: `ha/resources.cfg`, in Proxmox VE's section format. Pure.

    vm: 100
        state started
        max_restart 1

Reading of keys, and edits that keep everything else in the file as it was; the text itself is `kvorum.config.sections`' matter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from kvorum.config.properties import parse_bool, parse_int
from kvorum.config.sections import Section, SectionConfig
from kvorum.errors import AlreadyExists, ConfigError, InvalidInput, NotFound
from kvorum.ids import Sid, parse_sid

RESOURCES_CFG = "ha/resources.cfg"
TYPES = ("vm", "ct")
# Proxmox VE's limits: as many as anybody can mean.
MAX_TRIES = 10
MAX_PRIORITY = 1000


class Request(StrEnum):
    """What is wanted of a resource, in Proxmox VE's words."""

    started = "started"
    # Kept stopped; from a dead node it moves, and where it failed it stays `error`.
    stopped = "stopped"
    # Kept stopped, given up wherever that is difficult, and an error is forgotten: the way out of everything.
    disabled = "disabled"
    # Never touched, as if it were no resource.
    ignored = "ignored"


# An old word of Proxmox VE.
_ALIASES = {"enabled": Request.started}


@dataclass(frozen=True, slots=True)
class Resource:
    sid: Sid
    request: Request = Request.started
    # Failed starts on one node before another one is tried, and how many others.
    max_restart: int = 1
    max_relocate: int = 1
    # Goes back to a better node by itself once there is one.
    failback: bool = True
    # Ours: the higher, the earlier it gets the room that is left when a node dies.
    priority: int = 0
    comment: str = ""

    @property
    def wants_running(self) -> bool:
        return self.request is Request.started


def parse_request(word: str) -> Request:
    """Raises InvalidInput."""
    try:
        return _ALIASES.get(word) or Request(word)
    except ValueError:
        raise InvalidInput(
            f"{word!r} is no state that can be asked for",
            field="state",
            remedy="use started, stopped, disabled or ignored",
        ) from None


def parse_resources(text: str, path: str = RESOURCES_CFG) -> Mapping[Sid, Resource]:
    """By sid. Sections of other types are left out. Raises ConfigError."""
    found: dict[Sid, Resource] = {}
    for section in SectionConfig.parse(text, path):
        if section.type not in TYPES:
            continue
        sid = Sid(f"{section.type}:{section.id}")
        try:
            parse_sid(sid)
            found[sid] = Resource(
                sid=sid,
                request=parse_request(section.get("state", "started")),
                max_restart=max(0, section.get_int("max_restart", 1)),
                max_relocate=max(0, section.get_int("max_relocate", 1)),
                failback=section.get_bool("failback", True),
                priority=section.get_int("priority", 0),
                comment=section.get("comment", ""),
            )
        except InvalidInput as error:
            raise ConfigError(f"{section.type} '{section.id}': {error}", path=path, field=error.field) from error
    return found


# Edits


def sid_of(section: Section) -> str:
    return f"{section.type}:{section.id}"


def with_added(config: SectionConfig, sid: str, entries: Mapping[str, str] | None = None) -> SectionConfig:
    """At the end. Raises AlreadyExists, InvalidInput."""
    kind, vmid = parse_sid(sid)
    if config.find(str(vmid), kind) is not None:
        raise AlreadyExists(f"{sid} is managed by HA already", remedy="update it instead")
    return config.with_section(Section.of(kind, str(vmid), check_entries(entries or {})))


def with_changed(
    config: SectionConfig, sid: str, entries: Mapping[str, str], *, delete: Iterable[str] = ()
) -> SectionConfig:
    """In its place; keys that are not named stay, known or not. Raises NotFound, InvalidInput."""
    section = find_section(config, sid).without(*delete)
    for key, value in check_entries(entries).items():
        section = section.set(key, value)
    return config.with_section(section)


def without_resource(config: SectionConfig, sid: str, *, missing_ok: bool = False) -> SectionConfig:
    """Raises NotFound."""
    kind, vmid = parse_sid(sid)
    if not missing_ok:
        find_section(config, sid)
    return config.without(str(vmid), kind)


def find_section(config: SectionConfig, sid: str) -> Section:
    """Raises NotFound."""
    kind, vmid = parse_sid(sid)
    section = config.find(str(vmid), kind)
    if section is None:
        raise NotFound(f"{sid} is not managed by HA", remedy=f"add it with 'kvorum ha add {sid}'")
    return section


def check_entries(entries: Mapping[str, str]) -> Mapping[str, str]:
    """Values of the keys that we know, checked; other keys pass. Raises InvalidInput, ConfigError."""
    for key, value in entries.items():
        match key:
            case "state":
                parse_request(value)
            case "max_restart" | "max_relocate":
                parse_int(value, field=key, minimum=0, maximum=MAX_TRIES)
            case "priority":
                parse_int(value, field=key, minimum=-MAX_PRIORITY, maximum=MAX_PRIORITY)
            case "failback":
                parse_bool(value, field=key)
    return entries
