"""HA's list of what it shall keep running, `ha/resources.cfg`: read, and changed by one resource at a time.

The edits are pure and lose nothing of the file. What HA makes of the list is for the `ha` room.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.inventory import GuestStore, StoredEntry
from kvorum.config import Section, SectionConfig
from kvorum.errors import AlreadyExists, InvalidInput, NotFound, StaleVersion
from kvorum.ids import parse_sid

RESOURCES = "ha/resources.cfg"

STARTED = "started"
STOPPED = "stopped"
IGNORED = "ignored"
# What Proxmox VE's file may say: `enabled` is an old word for started; disabled is not started either.
_ALIASES = {"enabled": STARTED, "disabled": STOPPED, "": STARTED}


class ResourceStore(GuestStore, Protocol):
    async def write(
        self,
        path: str,
        content: bytes,
        *,
        expected_version: int | None = None,
        absent: bool = False,
        parents: bool = False,
        reason: str = "",
    ) -> StoredEntry: ...


@dataclass(frozen=True, slots=True)
class HaResources:
    """The file as it was read; `version` 0 when there is none yet."""

    config: SectionConfig
    version: int

    @classmethod
    async def load(cls, store: GuestStore, *, linearizable: bool = False) -> "HaResources":
        """Raises ConfigError when the file is broken: better no answer than 'not managed'."""
        try:
            entry = await store.get(RESOURCES, linearizable=linearizable)
        except NotFound:
            return cls(SectionConfig(), 0)
        return cls(SectionConfig.parse(entry.content, RESOURCES), entry.version)

    @property
    def states(self) -> Mapping[str, str]:
        """`vm:100` -> what is asked for, in today's words."""
        return {sid_of(section): request_state(section) for section in self.config}

    def section(self, sid: str) -> Section:
        """Raises NotFound."""
        for section in self.config:
            if sid_of(section) == sid:
                return section
        raise NotFound(f"{sid} is not managed by HA", remedy=f"add it with 'kvorum ha add {sid}'")


Edit = Callable[[SectionConfig], SectionConfig]


async def change(store: ResourceStore, edit: Edit, *, reason: str) -> HaResources:
    """Apply `edit` to the file, again on the new content when somebody else was faster. Raises what `edit` raises."""
    for _ in range(5):
        found = await HaResources.load(store, linearizable=True)
        config = edit(found.config)
        if config == found.config:
            return found
        content = config.render().encode()
        try:
            entry = await store.write(
                RESOURCES,
                content,
                expected_version=found.version or None,
                absent=not found.version,
                parents=True,
                reason=reason,
            )
        except (StaleVersion, AlreadyExists):
            continue
        return HaResources(config, entry.version)
    raise StaleVersion(f"{RESOURCES} changes faster than it can be written", remedy="try again")


def sid_of(section: Section) -> str:
    return f"{section.type}:{section.id}"


def request_state(section: Section) -> str:
    state = section.get("state", "")
    return _ALIASES.get(state, state)


def added(sid: str, state: str, comment: str = "") -> Edit:
    """Raises AlreadyExists when it is applied to a list that has the resource."""
    kind, vmid = parse_sid(sid)

    def edit(config: SectionConfig) -> SectionConfig:
        if any(sid_of(section) == sid for section in config):
            raise AlreadyExists(f"{sid} is managed by HA already", remedy="update it instead")
        entries = {"state": check_state(state), **({"comment": comment} if comment else {})}
        return config.with_section(Section.of(kind, str(vmid), entries))

    return edit


def updated(sid: str, *, state: str | None = None, comment: str | None = None) -> Edit:
    """None leaves a value as it is. Raises NotFound when the resource is not in the list."""
    parse_sid(sid)

    def edit(config: SectionConfig) -> SectionConfig:
        section = HaResources(config, 0).section(sid)
        if state is not None:
            section = section.set("state", check_state(state))
        if comment is not None:
            section = section.set("comment", comment) if comment else section.without("comment")
        return config.with_section(section)

    return edit


def removed(sid: str, *, missing_ok: bool = False) -> Edit:
    kind, vmid = parse_sid(sid)

    def edit(config: SectionConfig) -> SectionConfig:
        if not missing_ok:
            HaResources(config, 0).section(sid)
        return config.without(str(vmid), kind)

    return edit


def check_state(state: str) -> str:
    if state not in (STARTED, STOPPED):
        raise InvalidInput(
            f"{state!r} is no state for HA to keep", field="request_state", remedy="use started or stopped"
        )
    return state
