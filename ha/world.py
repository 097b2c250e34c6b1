"""Reads what the pure cores decide on: the store through clusterfs, the keeper's files, the processes of this host.

One `Reading` serves a whole round. Its parts are read one after the other, manager_status first and leases last, so that
whatever changes in between makes a decision refused or too careful, never too bold. No decisions here.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kvorum.errors import ConfigError, InvalidInput, NotFound
from kvorum.ids import NodeName, NodeUid, Sid
from kvorum.node import Identity, write_atomically

from . import lease_state, lrm
from .keeper.processes import Guarded, scan
from .leases import DEFAULT, LONGEST_TAKEOVER_S, Lease, Profile, Terms
from .resources import RESOURCES_CFG, Resource, parse_resources
from .settings import SETTINGS_CFG, parse_settings
from .status import MANAGER_STATUS, LrmStatus, lrm_status_path, parse_lrm_status, parse_manager_status
from .view import Config, Node, View, parse_config_path

if TYPE_CHECKING:
    from clusterfs.client import StoreClient
    from kvorum.v1 import replica_pb2, store_pb2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """The store as this node's replica had applied it, at `applied_index` or later."""

    files: Mapping[str, "store_pb2.Entry"]
    applied_index: int
    replica: "replica_pb2.GetReplicaStatusResponse"
    leases: "replica_pb2.ListLeasesResponse"

    def content(self, path: str) -> bytes:
        entry = self.files.get(path)
        return entry.content if entry is not None else b""

    def version(self, path: str) -> int:
        entry = self.files.get(path)
        return entry.version if entry is not None else 0


@dataclass(slots=True)
class Complaints:
    """Files that do not parse, each said once until it changes."""

    said: dict[str, int] = field(default_factory=dict)

    def say(self, error: ConfigError, path: str, version: int) -> None:
        if self.said.get(path) != version:
            self.said[path] = version
            log.error("%s: %s (%s)", path, error, error.remedy or "mend the file")


async def read_store(store: "StoreClient") -> Reading:
    """Raises Unreachable, Refused (no replica runs)."""
    status = await _listing(store, "ha")
    nodes = await _listing(store, "nodes")
    replica = await store.status()
    leases = await store.list_leases()
    files = {entry.path: entry for entry in (*status[0], *nodes[0])}
    # Without a directory `ha` (nobody has used HA, or somebody removed it) its listing tells no index; the later one does.
    return Reading(files=files, applied_index=status[1] or nodes[1], replica=replica, leases=leases)


async def _listing(store: "StoreClient", path: str) -> tuple[tuple["store_pb2.Entry", ...], int]:
    try:
        found = await store.list(path, recursive=True, with_content=True)
    except NotFound:
        return (), 0
    return found.entries, found.applied_index


@dataclass(slots=True)
class Absences:
    """Nodes that hold orders and are no members: since when, from this process' own first look, which is never too early, and
    how long they may live still. Their lease is gone with them; of one that was never seen here nothing is assumed."""

    since: dict[str, float] = field(default_factory=dict)
    takeover_s: dict[str, float] = field(default_factory=dict)

    def look(
        self, holders: Iterable[str], members: Mapping[NodeName, Node], longest_s: float, now: float
    ) -> Mapping[NodeName, float]:
        """Seconds until their guests have surely ended, by node. `longest_s`: T of the profile that is chosen now; who is
        just gone may have taken it up with a last renewal. `now` on the boot-time clock."""
        absent = {name for name in holders if name} - set(members)
        self.since = {name: self.since.get(name, now) for name in absent}
        for member in members.values():
            if member.lease is not None:
                self.takeover_s[member.name] = max(member.lease.terms.takeover_after_s, longest_s)
        left: dict[NodeName, float] = {}
        for name, began in self.since.items():
            self.takeover_s[name] = max(self.takeover_s.get(name, LONGEST_TAKEOVER_S), longest_s)
            left[NodeName(name)] = self.takeover_s[name] - (now - began)
        return left


def manager_view(
    reading: Reading, identity: Identity, complaints: Complaints, absences: Absences, *, now: float
) -> View:
    """`now` on the boot-time clock. Raises ConfigError when the manager's own status cannot be read."""
    leases = {
        lease.uid: Lease(
            lease.incarnation,
            lease.renewal,
            lease.fenced,
            lease.age_seconds,
            Terms(lease.terms.pause_after_ms / 1000, lease.terms.takeover_after_ms / 1000),
            lease.resting,
        )
        for lease in reading.leases.leases
    }
    nodes = {
        NodeName(member.name): Node(
            name=NodeName(member.name),
            uid=NodeUid(member.uid),
            lease=leases.get(member.uid),
            lrm=_lrm_status(reading, member.name, complaints),
        )
        for member in reading.replica.members
        if not member.witness  # runs no guests, so nothing is placed there
    }
    status = parse_manager_status(reading.content(MANAGER_STATUS))
    holders = [service.node for service in status.service_status.values()]
    profile = read_profile(reading, complaints) or DEFAULT
    return View(
        is_leader=reading.leases.leader,
        is_quorate=reading.leases.quorate,
        self_node=identity.node_name,
        nodes=nodes,
        resources=_resources(reading, complaints),
        configs=_configs(reading),
        status=status,
        status_version=reading.version(MANAGER_STATUS),
        leaving_s=absences.look(holders, nodes, profile.takeover_after_s, now),
    )


def read_profile(reading: Reading, complaints: Complaints) -> Profile | None:
    """As the settings have it; None when they cannot be read or are not safe, and all goes on as it is."""
    try:
        return parse_settings(reading.content(SETTINGS_CFG).decode(errors="replace")).profile
    except ConfigError as error:
        complaints.say(error, SETTINGS_CFG, reading.version(SETTINGS_CFG))
        return None


async def local_view(
    reading: Reading, identity: Identity, files: "KeeperFiles", complaints: Complaints
) -> lrm.LocalView:
    """Raises ConfigError when the manager's status cannot be read: its orders are unknown, nothing is begun or ended."""
    registered = files.registered()
    running = await asyncio.to_thread(running_guests, registered)
    return lrm.LocalView(
        node=identity.node_name,
        lease=files.lease(identity.uid),
        status=parse_manager_status(reading.content(MANAGER_STATUS)),
        resources=_resources(reading, complaints) or {},
        configs=frozenset(sid for sid, config in _configs(reading).items() if config.node == identity.name),
        running=running,
        written=_lrm_status(reading, identity.name, complaints),
        registered=registered,
        is_lease_wanted=files.is_lease_wanted(),
    )


def running_guests(sids: Iterable[str]) -> frozenset[str]:
    """Guests of which a process is on this host, paused ones included."""
    return frozenset(found.sid for found in scan(Guarded(sid) for sid in sids))


def _resources(reading: Reading, complaints: Complaints) -> Mapping[Sid, Resource] | None:
    try:
        return parse_resources(reading.content(RESOURCES_CFG).decode())
    except UnicodeDecodeError:
        error = ConfigError("it is no text", path=RESOURCES_CFG)
    except ConfigError as found:
        error = found
    complaints.say(error, RESOURCES_CFG, reading.version(RESOURCES_CFG))
    return None


def _lrm_status(reading: Reading, node: str, complaints: Complaints) -> LrmStatus:
    """A damaged one counts as none: nothing is known of that node, so nothing of it is recovered."""
    path = lrm_status_path(node)
    try:
        return parse_lrm_status(reading.content(path), path)
    except ConfigError as error:
        complaints.say(error, path, reading.version(path))
        return LrmStatus()


def _configs(reading: Reading) -> Mapping[Sid, Config]:
    configs: dict[Sid, Config] = {}
    for path, entry in reading.files.items():
        if (guest := parse_config_path(path)) is not None:
            configs[guest[0]] = Config(node=guest[1], version=entry.version)
    return configs


class GuestList(msgspec.Struct, frozen=True):
    """guests.json: what the keeper shall guard. The keeper reads the same shape."""

    revision: int = 0
    guests: tuple[dict[str, str], ...] = ()
    lease_wanted: bool = False
    # None: as the keeper has it.
    profile: Profile | None = None


class KeeperFiles:
    """The two files between the keeper and us."""

    def __init__(self, *, guests: Path = lease_state.GUESTS_FILE, state: Path = lease_state.STATE_FILE) -> None:
        self._guests = guests
        self._state = state

    def lease(self, uid: str) -> lease_state.LeaseState:
        """What the keeper says, as far as it is about this node's present identity."""
        state = lease_state.read(self._state)
        return state if state.uid == uid else lease_state.LeaseState(cause="the keeper has not seen this cluster yet")

    def registered(self) -> tuple[str, ...]:
        return tuple(guest["sid"] for guest in self._load().guests)

    def is_lease_wanted(self) -> bool:
        return self._load().lease_wanted

    def profile(self) -> Profile | None:
        return self._load().profile

    def register(self, sids: Iterable[str], *, is_lease_wanted: bool, profile: Profile | None) -> None:
        revision = self._load().revision + 1
        guests = tuple({"sid": sid, "uuid": ""} for sid in sids)
        wanted = GuestList(revision, guests, is_lease_wanted, profile)
        write_atomically(self._guests, msgspec.json.encode(wanted), mode=0o600)

    def _load(self) -> GuestList:
        try:
            return msgspec.json.decode(self._guests.read_bytes(), type=GuestList)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, InvalidInput):
            return GuestList()
