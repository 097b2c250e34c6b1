"""A guest as the API shows it, made of its file and what its driver sees. Pure."""

from agent.guests.driver import Observed, RunState
from agent.inventory import GuestFile, GuestKind
from kvorum.config import parse_properties
from kvorum.config.sizes import MIB
from kvorum.errors import ConfigError
from kvorum.ids import guest_resource, node_resource
from kvorum.v1 import guest_pb2 as pb

KINDS = {GuestKind.vm: pb.GUEST_KIND_VM, GuestKind.container: pb.GUEST_KIND_CONTAINER}
UNKNOWN_STATE = pb.GUEST_STATE_UNKNOWN

_STATES = {
    RunState.stopped: pb.GUEST_STATE_STOPPED,
    RunState.running: pb.GUEST_STATE_RUNNING,
    RunState.paused: pb.GUEST_STATE_PAUSED,
}


def to_message(file: GuestFile, seen: Observed | pb.Guest | None, *, is_ha_managed: bool) -> pb.Guest:
    """`seen`: what our driver sees, or what the owner's agent said; None when neither can tell.

    A file that does not parse still gives a guest, without its settings, so that it does not vanish from lists.
    """
    guest = pb.Guest(
        name=guest_resource(file.vmid),
        vmid=file.vmid,
        kind=KINDS[file.kind],
        node=node_resource(file.node),
        state=pb.GUEST_STATE_UNKNOWN,
        ha_managed=is_ha_managed,
        version=file.version,
    )
    try:
        config = file.config
    except ConfigError as error:
        guest.lock = "broken"
        guest.display_name = f"(its file is broken: {error.message})"
        config = None
    if config is not None:
        guest.config.update(config)
        if config.description:
            guest.config["description"] = config.description
        guest.display_name = file.display_name
        guest.lock = config.get("lock", "")
        guest.memory_bytes = _memory_bytes(config.get("memory", "512"))
    if isinstance(seen, Observed):
        guest.state = _STATES[seen.state]
        guest.pid = seen.pid or 0
        guest.uptime_seconds = int(seen.uptime_s)
    elif seen is not None:
        guest.state, guest.pid, guest.uptime_seconds = seen.state, seen.pid, seen.uptime_seconds
    return guest


def _memory_bytes(text: str) -> int:
    try:
        return int(parse_properties(text, default_key="current").get("current", "0")) * MIB
    except (ConfigError, ValueError):
        return 0
