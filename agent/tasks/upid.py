"""The name of a task: Proxmox VE's UPID, letter for letter, because its client programs take it apart.

`UPID:node:PID8:PSTART8:STARTTIME8:type:id:user@realm:`; numbers are hexadecimal in capitals, eight digits or more. Proxmox VE
runs one process a task; Kvorum runs tasks inside the agent, so `pid` is the agent's and `pstart` the tick (1/100 s since
boot) at which the task began, made unique by the runner. Pure: no clock is read here.
"""

import re
from dataclasses import dataclass

from kvorum.errors import InvalidInput
from kvorum.ids import NodeName

_UPID = re.compile(
    r"UPID:(?P<node>[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?):(?P<pid>[0-9A-Fa-f]{8}):(?P<pstart>[0-9A-Fa-f]{8,9}):"
    r"(?P<start>[0-9A-Fa-f]{8}):(?P<type>[^:\s/]+):(?P<id>[^:\s/]*):(?P<user>[^:\s/]+):"
)
# Longer ones would not fit a file name together with a suffix.
MAX_LENGTH = 240


@dataclass(frozen=True, slots=True)
class Upid:
    """`start_time_s` is in seconds since 1970; `subject` is the `id` field, mostly a guest id."""

    node: NodeName
    pid: int
    pstart: int
    start_time_s: int
    type: str
    subject: str
    user: str

    @classmethod
    def parse(cls, text: str) -> "Upid":
        """Raises InvalidInput for anything that Proxmox VE would not have written."""
        match = _UPID.fullmatch(text) if len(text) <= MAX_LENGTH else None
        if match is None:
            raise InvalidInput(
                f"{text[:80]!r} is no task id", field="upid", remedy="copy the whole UPID, with its last colon"
            )
        return cls(
            node=NodeName(match["node"]),
            pid=int(match["pid"], 16),
            pstart=int(match["pstart"], 16),
            start_time_s=int(match["start"], 16),
            type=match["type"],
            subject=match["id"],
            user=match["user"],
        )

    def __str__(self) -> str:
        numbers = f"{self.pid:08X}:{self.pstart:08X}:{self.start_time_s:08X}"
        return f"UPID:{self.node}:{numbers}:{self.type}:{self.subject}:{self.user}:"
