"""HA's list of what it shall keep running, `ha/resources.cfg`: read, and changed by one resource at a time.

The edits are pure and lose nothing of the file. What HA makes of the list is for the `ha` room.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.inventory import GuestStore
from ha.resources import RESOURCES_CFG as RESOURCES
from ha.resources import Request, find_section, parse_request, sid_of, with_added, with_changed, without_resource
from kvorum.config import Section, SectionConfig
from kvorum.errors import InvalidInput

from . import files
from .files import FileStore

STARTED = Request.started
STOPPED = Request.stopped
IGNORED = Request.ignored


@dataclass(frozen=True, slots=True)
class HaResources:
    """The file as it was read; `version` 0 when there is none yet."""

    config: SectionConfig
    version: int

    @classmethod
    async def load(cls, store: GuestStore, *, linearizable: bool = False) -> "HaResources":
        """Raises ConfigError when the file is broken: better no answer than 'not managed'."""
        content, version = await files.load(store, RESOURCES, linearizable=linearizable)
        return cls(SectionConfig.parse(content, RESOURCES), version)

    @property
    def states(self) -> Mapping[str, str]:
        """`vm:100` -> what is asked for, in today's words."""
        return {sid_of(section): request_state(section) for section in self.config}

    def section(self, sid: str) -> Section:
        """Raises NotFound."""
        return find_section(self.config, sid)


Edit = Callable[[SectionConfig], SectionConfig]


async def change(store: FileStore, edit: Edit, *, reason: str) -> HaResources:
    """Apply `edit` to the file, again on the new content when somebody else was faster. Raises what `edit` raises."""

    def apply(content: bytes) -> tuple[SectionConfig, bytes]:
        before = SectionConfig.parse(content, RESOURCES)
        config = edit(before)
        return config, content if config == before else config.render().encode()

    return HaResources(*await files.change(store, RESOURCES, apply, reason=reason))


def request_state(section: Section) -> str:
    """In today's words; one that nobody knows, as it stands there."""
    word = section.get("state", "") or Request.started
    try:
        return parse_request(word)
    except InvalidInput:
        return word


def added(sid: str, state: str, comment: str = "", more: Mapping[str, str] | None = None) -> Edit:
    """Raises AlreadyExists when it is applied to a list that has the resource. `more`: further keys as they are written."""
    entries = {"state": state, **(more or {}), **({"comment": comment} if comment else {})}
    return lambda config: with_added(config, sid, entries)


def updated(
    sid: str, *, state: str | None = None, comment: str | None = None, more: Mapping[str, str] | None = None
) -> Edit:
    """None leaves a value as it is. Raises NotFound when the resource is not in the list."""
    entries = dict(more or {})
    if state is not None:
        entries["state"] = state
    if comment:
        entries["comment"] = comment
    return lambda config: with_changed(config, sid, entries, delete=("comment",) if comment == "" else ())


def removed(sid: str, *, missing_ok: bool = False) -> Edit:
    return lambda config: without_resource(config, sid, missing_ok=missing_ok)
