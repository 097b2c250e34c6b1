"""What HA shall keep running: `ha/resources.cfg`, in Proxmox VE's section format. Pure.

    vm: 100
        state started
        max_restart 1

Only the reading of keys is here; the text itself is `kvorum.config.sections`' matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from kvorum.config.sections import SectionConfig
from kvorum.errors import ConfigError, InvalidInput
from kvorum.ids import Sid, parse_sid

RESOURCES_CFG = "ha/resources.cfg"
TYPES = ("vm", "ct")


class Request(StrEnum):
    started = "started"
    stopped = "stopped"


# Words of Proxmox VE that mean one of the two.
_REQUESTS = {
    "started": Request.started,
    "enabled": Request.started,
    "stopped": Request.stopped,
    "disabled": Request.stopped,
}


@dataclass(frozen=True, slots=True)
class Resource:
    sid: Sid
    request: Request = Request.started
    # Failed starts on one node before another one is tried, and how many others.
    max_restart: int = 1
    max_relocate: int = 1
    comment: str = ""


def parse_resources(text: str, path: str = RESOURCES_CFG) -> Mapping[Sid, Resource]:
    """By sid. `ignored` resources are left out, as are sections of other types. Raises ConfigError."""
    found: dict[Sid, Resource] = {}
    for section in SectionConfig.parse(text, path):
        state = section.get("state", "started")
        if section.type not in TYPES or state == "ignored":
            continue
        sid = Sid(f"{section.type}:{section.id}")
        try:
            parse_sid(sid)
            found[sid] = Resource(
                sid=sid,
                request=_REQUESTS[state],
                max_restart=max(0, section.get_int("max_restart", 1)),
                max_relocate=max(0, section.get_int("max_relocate", 1)),
                comment=section.get("comment", ""),
            )
        except KeyError:
            raise ConfigError(f"{sid} has the unknown state {state!r}", path=path, field="state") from None
        except InvalidInput as error:
            raise ConfigError(f"{section.type} '{section.id}': {error}", path=path, field=error.field) from error
    return found
