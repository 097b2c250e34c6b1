"""What the keeper says about this node's lease, and whether an HA guest may start under it.

The keeper is the only writer of the file; the agent and the local resource manager read it before each start. Reading
is all that happens here: nothing renews, waits or kills. Times are seconds of CLOCK_BOOTTIME, which goes on while the
host sleeps and never jumps; a file from another boot counts as none, because its times mean nothing now.
"""

import time
from pathlib import Path

import msgspec

from ha.leases import DEFAULT, Profile
from kvorum.errors import Fenced, InvalidInput
from kvorum.node import KEEPER_DIR

STATE_FILE = KEEPER_DIR / "state.json"
GUESTS_FILE = KEEPER_DIR / "guests.json"

# Metadata of a start that HA asks the agent for: the incarnation under which the order was given.
ORDER_KEY = "kvorum-ha-lease"

LIVE = "live"
PAUSED = "paused"
KILLED = "killed"
NONE = "none"


class LeaseState(msgspec.Struct, frozen=True, kw_only=True):
    """The keeper's last word. `phase` is one of `live`, `paused`, `killed`, `none`."""

    phase: str = NONE
    incarnation: int = 0
    # When the lease stops being trusted here: the last acknowledged renewal's *sending* plus A.
    valid_until_boottime: float = 0.0
    # Revision of guests.json that the keeper guards, and the resources in it.
    guests_revision: int = 0
    sids: tuple[str, ...] = ()
    boot_id: str = ""
    # UUID of the node whose lease it is; a host that joined again has another.
    uid: str = ""
    # What the keeper lives by at this moment.
    profile: Profile = DEFAULT
    # Which watchdog stands behind it, in a sentence; for people.
    watchdog: str = ""
    # Why it is in this phase, in a sentence; for people.
    cause: str = ""


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read(path: Path = STATE_FILE, *, boot: str | None = None) -> LeaseState:
    """The state as written; without a readable file of this boot there is no lease. Never raises."""
    try:
        state = msgspec.json.decode(path.read_bytes(), type=LeaseState)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, InvalidInput):
        return LeaseState(cause="the keeper has not said anything yet")
    if state.boot_id != (boot_id() if boot is None else boot):
        return LeaseState(cause="the keeper's state is from another boot")
    return state


def may_start(state: LeaseState, now_boottime: float, sid: str, *, incarnation: int | None = None) -> None:
    """Pure. Raises Fenced unless the lease is live now and the keeper guards `sid`, so that it can end the guest.

    `incarnation`, when given, must be the one held now: an order that was given under an earlier lease may have been
    overtaken by a recovery elsewhere. Whoever starts something slowly asks again, with the incarnation that it had at
    the beginning, once the process exists and before the guest runs.
    """
    remedy = "check that kvorum-keeper runs and that the node sees the majority"
    if state.phase != LIVE:
        why = f": {state.cause}" if state.cause else ""
        raise Fenced(f"this node holds no live lease (phase {state.phase}{why})", remedy=remedy)
    if now_boottime >= state.valid_until_boottime:
        late = now_boottime - state.valid_until_boottime
        raise Fenced(f"this node's lease ran out {late:.1f} s ago", remedy=remedy)
    if incarnation is not None and incarnation != state.incarnation:
        raise Fenced(f"the order is of lease {incarnation}, this node now holds {state.incarnation}", remedy=remedy)
    if sid not in state.sids:
        raise Fenced(f"the keeper does not guard {sid} yet", remedy="wait until kvorum-ha has registered it")
