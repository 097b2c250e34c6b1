"""Identifiers that travel through every room, and the rules that make one valid.

Only shapes are checked here; whether the thing exists is for the room that owns it.
"""

import re
from typing import NewType

from kvorum.errors import InvalidInput

Vmid = NewType("Vmid", int)
NodeName = NewType("NodeName", str)
NodeUid = NewType("NodeUid", str)
Volid = NewType("Volid", str)
Sid = NewType("Sid", str)

VMID_MIN = 100
VMID_MAX = 999_999_999

_NODE_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SID = re.compile(r"(vm|ct):([1-9][0-9]{2,8})")
_STORAGE_ID = re.compile(r"[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]")


def parse_vmid(text: str | int, *, field: str = "vmid") -> Vmid:
    """A guest id, 100 to 999999999 as in Proxmox VE."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not VMID_MIN <= value <= VMID_MAX:
        raise InvalidInput(f"{text!r} is no guest id", field=field, remedy=f"use a number from {VMID_MIN} up")
    return Vmid(value)


def parse_node_name(text: str, *, field: str = "node") -> NodeName:
    """A host name label (RFC 1123)."""
    if not _NODE_NAME.fullmatch(text):
        raise InvalidInput(
            f"{text!r} is no node name", field=field, remedy="use letters, digits and inner hyphens, at most 63"
        )
    return NodeName(text)


def parse_node_uid(text: str, *, field: str = "uid") -> NodeUid:
    """A lower-case UUID (RFC 9562)."""
    if not _UID.fullmatch(text):
        raise InvalidInput(f"{text!r} is no node UUID", field=field)
    return NodeUid(text)


def parse_sid(text: str, *, field: str = "sid") -> tuple[str, Vmid]:
    """An HA resource id, `vm:100` or `ct:101`: its type and guest id."""
    match = _SID.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text!r} is no HA resource", field=field, remedy="write vm:100 or ct:101")
    return match[1], Vmid(int(match[2]))


def parse_volid(text: str, *, field: str = "volume") -> tuple[str, str]:
    """A volume id `storage:name`: the storage and the name within it."""
    storage, colon, name = text.partition(":")
    if not colon or not _STORAGE_ID.fullmatch(storage) or not name or ".." in name.split("/") or name.startswith("/"):
        raise InvalidInput(
            f"{text!r} is no volume id", field=field, remedy="write STORAGE:NAME, as in local:100/vm-100-disk-0.qcow2"
        )
    return storage, name


def node_resource(name: str) -> str:
    """`n1` -> `nodes/n1`, as resources are named over the API (https://google.aip.dev/122)."""
    return f"nodes/{name}"


def guest_resource(vmid: int) -> str:
    return f"guests/{vmid}"


def parse_node_resource(text: str, *, field: str = "node") -> NodeName:
    """`nodes/n1` (or, for people's sake, `n1`) -> `n1`."""
    return parse_node_name(text.removeprefix("nodes/"), field=field)


def parse_guest_resource(text: str, *, field: str = "name") -> Vmid:
    return parse_vmid(text.removeprefix("guests/"), field=field)
