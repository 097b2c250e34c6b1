"""Reads what the pure cores decide on: the mirror of the store, its leases, the keeper's files, the processes of this host.

One `Reading` serves a whole round. The files in it are those of the mirror, the leases are asked for after that, so
that whatever changes in between makes a decision refused or too careful, never too bold. What a file says is read once
for each of its versions. No decisions here.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from kvorum.config import GuestConfig, parse_properties
from kvorum.errors import ConfigError, InvalidInput, KvorumError
from kvorum.ids import NodeName, NodeUid, Sid
from kvorum.node import Identity, write_atomically

from . import lease_state, lrm
from .fencing.config import FENCE_CFG, FenceConfig, parse_fence_config
from .fencing.plan import Candidate
from .keeper.processes import Found, Guarded, scan
from .leases import DEFAULT, LONGEST_TAKEOVER_S, Lease, Profile, Terms
from .load import Demand, Use
from .options import DATACENTER_CFG, Options, parse_options
from .resources import RESOURCES_CFG, Resource, parse_resources
from .rules import RULES_CFG, Compiled, Orders, RuleCache, Rules, parse_rules
from .settings import SETTINGS_CFG, parse_settings
from .status import (
    MANAGER_STATUS,
    LrmStatus,
    ManagerStatus,
    State,
    lrm_status_path,
    parse_lrm_status,
    parse_manager_status,
)
from .view import COMMANDS_DIR, Command, Config, Node, Startup, View, parse_config_path

if TYPE_CHECKING:
    from clusterfs.client import StoreClient
    from kvorum.v1 import replica_pb2, store_pb2

    from .mirror import Mirror

log = logging.getLogger(__name__)

T = TypeVar("T")
_MIB = 1 << 20
# A person's words, not a book.
_MAX_COMMAND_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """The store as this node's replica had it, or a moment before."""

    files: Mapping[str, "store_pb2.Entry"]
    # Of the mirror: the same number, the same files.
    revision: int
    replica: "replica_pb2.GetReplicaStatusResponse"
    leases: "replica_pb2.ListLeasesResponse"

    def content(self, path: str) -> bytes:
        entry = self.files.get(path)
        return entry.content if entry is not None else b""

    def version(self, path: str) -> int:
        entry = self.files.get(path)
        return entry.version if entry is not None else 0


class Parsed:
    """What files say, kept as long as they have not changed. What does not parse is complained about once."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, object]] = {}
        self._rules = Rules()
        self._cache = RuleCache()
        self._compiled = Compiled()
        self._configs: tuple[int, Mapping[Sid, Config]] = (-1, {})

    def get(self, reading: Reading, path: str, parse: Callable[[bytes], T]) -> T:
        """Raises ConfigError, each time."""
        version = reading.version(path)
        held = self._held.get(path)
        if held is None or held[0] != version:
            try:
                held = (version, parse(reading.content(path)))
            except ConfigError as error:
                log.error("%s: %s (%s)", path, error, error.remedy or "mend the file")
                held = (version, error)
            except UnicodeDecodeError:
                log.error("%s is no text", path)
                held = (version, ConfigError("it is no text", path=path))
            self._held[path] = held
        if isinstance(held[1], ConfigError):
            raise held[1]
        return held[1]  # type: ignore[return-value]

    def configs(self, reading: Reading) -> Mapping[Sid, Config]:
        """Of all guests; the same mapping until a file changes."""
        if self._configs[0] != reading.revision:
            self._held = {path: held for path, held in self._held.items() if path in reading.files}
            self._configs = (reading.revision, _configs(reading, self))
        return self._configs[1]

    def rules(self, reading: Reading, resources: Iterable[Sid], nodes: Iterable[NodeName]) -> Compiled:
        """A file that does not parse changes nothing; in the first look it is as if there were no rules."""
        with suppress(ConfigError):
            self._rules = self.get(reading, RULES_CFG, _parse_rules)
        compiled = self._cache.compile(self._rules, frozenset(resources), frozenset(nodes))
        if compiled is not self._compiled:
            self._compiled = compiled
            for conflict in compiled.conflicts:
                log.warning("%s: %s", RULES_CFG, conflict)
        return compiled


async def read_store(store: "StoreClient", mirror: "Mirror") -> Reading:
    """Raises Unreachable, Refused (no replica runs)."""
    files, revision = mirror.snapshot(), mirror.revision
    replica = await store.status()
    leases = await store.list_leases()
    return Reading(files=files, revision=revision, replica=replica, leases=leases)


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
                takeover_s = max(member.lease.terms.takeover_after_s, longest_s)
                # By its UUID as well, should another machine get its name (`manager.strangers`).
                self.takeover_s[member.name] = self.takeover_s[member.uid] = takeover_s
        left: dict[NodeName, float] = {}
        for name, began in self.since.items():
            self.takeover_s[name] = max(self.takeover_s.get(name, LONGEST_TAKEOVER_S), longest_s)
            left[NodeName(name)] = self.takeover_s[name] - (now - began)
        return left


def leases_of(reading: Reading) -> Mapping[str, Lease]:
    """By member, as the own replica knows them."""
    return {
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


def manager_view(reading: Reading, identity: Identity, parsed: Parsed, absences: Absences, *, now: float) -> View:
    """`now` on the boot-time clock. Raises ConfigError when the manager's own status cannot be read."""
    leases = leases_of(reading)
    nodes = {
        NodeName(member.name): Node(
            name=NodeName(member.name),
            uid=NodeUid(member.uid),
            lease=leases.get(member.uid),
            lrm=_lrm_status(reading, member.name, parsed, uid=member.uid),
        )
        for member in reading.replica.members
        if not member.witness  # runs no guests, so nothing is placed there
    }
    status = _manager_status(reading, parsed)
    holders = [*(service.node for service in status.service_status.values()), *status.node_status]
    resources = _resources(reading, parsed)
    profile = read_profile(reading, parsed) or DEFAULT
    return View(
        is_leader=reading.leases.leader,
        is_quorate=reading.leases.quorate,
        self_node=identity.node_name,
        nodes=nodes,
        resources=resources,
        configs=parsed.configs(reading),
        status=status,
        status_version=reading.version(MANAGER_STATUS),
        leaving_s=absences.look(holders, nodes, profile.takeover_after_s, now),
        commands=_commands(reading),
        rules=parsed.rules(reading, resources if resources is not None else map(Sid, status.service_status), nodes),
        options=_options(reading, parsed),
    )


def read_profile(reading: Reading, parsed: Parsed) -> Profile | None:
    """As the settings have it; None when they cannot be read or are not safe, and all goes on as it is."""
    try:
        return parsed.get(
            reading, SETTINGS_CFG, lambda content: parse_settings(content.decode(errors="replace")).profile
        )
    except ConfigError:
        return None


def read_fence_config(reading: Reading, parsed: Parsed) -> FenceConfig:
    """A damaged file switches nobody off; leases are waited for as ever."""
    try:
        return parsed.get(reading, FENCE_CFG, lambda content: parse_fence_config(content.decode()))
    except ConfigError:
        return FenceConfig()


def fence_candidates(view: View) -> Mapping[str, Candidate]:
    """Nodes that hold up guests when they are silent. None while HA is disarmed."""
    if view.status.disarm is not None:
        return {}
    holders = {service.node for service in view.status.service_status.values() if service.state is not State.stopped}
    return {
        name: Candidate(name, node.uid, node.lease)
        for name, node in view.nodes.items()
        if node.lease is not None and name in holders
    }


async def local_view(
    reading: Reading, identity: Identity, files: "KeeperFiles", parsed: Parsed, shutdown: lrm.Shutdown | None = None
) -> tuple[lrm.LocalView, tuple[Found, ...]]:
    """And the processes that it saw. Raises ConfigError when the manager's status cannot be read: its orders are unknown,
    nothing is begun or ended."""
    registered = files.registered()
    processes = await asyncio.to_thread(guest_processes, registered)
    configs = _own_configs(reading, identity.name)
    running = frozenset(found.sid for found in processes)
    view = lrm.LocalView(
        node=identity.node_name,
        lease=files.lease(identity.uid),
        status=_manager_status(reading, parsed),
        resources=_resources(reading, parsed) or {},
        configs=configs,
        running=running,
        written=_lrm_status(reading, identity.name, parsed, uid=identity.uid),
        registered=registered,
        is_lease_wanted=files.is_lease_wanted(),
        options=_options(reading, parsed),
        shutdown=shutdown,
        orders=_orders(reading, parsed, shutdown),
        uid=identity.uid,
        strays=_strays(reading, parsed, running - configs),
    )
    return view, processes


def _strays(reading: Reading, parsed: Parsed, not_ours: frozenset[str]) -> frozenset[str]:
    """Those whose file lies elsewhere and does not move. One that is nowhere may be on its way, or deleted: not judged here."""
    if not not_ours:
        return frozenset()
    return frozenset(
        sid for sid, config in parsed.configs(reading).items() if sid in not_ours and not config.is_migrating
    )


def _orders(reading: Reading, parsed: Parsed, shutdown: lrm.Shutdown | None) -> Orders:
    """Only a shutdown asks for them."""
    if shutdown is None:
        return Orders()
    nodes = [NodeName(member.name) for member in reading.replica.members if not member.witness]
    return parsed.rules(reading, _resources(reading, parsed) or {}, nodes).orders


def guest_processes(sids: Iterable[str]) -> tuple[Found, ...]:
    """Of guests on this host, paused ones included."""
    return tuple(scan(Guarded(sid) for sid in sids))


def _manager_status(reading: Reading, parsed: Parsed) -> ManagerStatus:
    return parsed.get(reading, MANAGER_STATUS, parse_manager_status)


def _resources(reading: Reading, parsed: Parsed) -> Mapping[Sid, Resource] | None:
    try:
        return parsed.get(reading, RESOURCES_CFG, lambda content: parse_resources(content.decode()))
    except ConfigError:
        return None


def _options(reading: Reading, parsed: Parsed) -> Options:
    return parsed.get(reading, DATACENTER_CFG, _parse_options)


def _parse_rules(content: bytes) -> Rules:
    rules = parse_rules(content)
    for problem in rules.problems:
        log.warning("%s: %s", RULES_CFG, problem)
    return rules


def _parse_options(content: bytes) -> Options:
    options = parse_options(content.decode(errors="replace"))
    for problem in options.problems:
        log.warning("%s", problem)
    return options


def _lrm_status(reading: Reading, node: str, parsed: Parsed, *, uid: str) -> LrmStatus:
    """A damaged one counts as none: nothing is known of that node, so nothing of it is recovered. So does one of a member
    that was removed and had this name."""
    path = lrm_status_path(node)
    try:
        status = parsed.get(reading, path, lambda content: parse_lrm_status(content, path))
    except ConfigError:
        return LrmStatus()
    return status if status.uid in ("", uid) else LrmStatus()


def _own_configs(reading: Reading, node: str) -> frozenset[str]:
    guests = (parse_config_path(path) for path in reading.files if path.startswith(f"nodes/{node}/"))
    return frozenset(guest[0] for guest in guests if guest is not None)


def _configs(reading: Reading, parsed: Parsed) -> Mapping[Sid, Config]:
    configs: dict[Sid, Config] = {}
    for path, entry in reading.files.items():
        if (guest := parse_config_path(path)) is None:
            continue
        sid, node = guest
        lock, demand, startup = parsed.get(reading, path, _parse_guest)
        configs[sid] = Config(node=node, version=entry.version, lock=lock, demand=demand, startup=startup)
    return configs


def _parse_guest(content: bytes) -> tuple[str, Demand, Startup]:
    """What holds the guest, what it may use at most, and its place among those that start together. A file that does not
    parse holds nothing and asks for nothing; where only its numbers do not, its lock holds all the same."""
    lock = ""
    try:
        config = GuestConfig.parse(content)
        lock = config.get("lock", "")
        cores = int(config.get("cores", "0")) * max(1, int(config.get("sockets", "1")))
        memory = parse_properties(config.get("memory", "512"), default_key="current").get("current", "512")
        demand = Demand(Use(float(cores), float(int(memory) * _MIB)))
        return lock, demand, _startup(config.get("startup", ""))
    except (KvorumError, ValueError):
        return lock, Demand(), Startup()


def _startup(text: str) -> Startup:
    """`order=1,up=30,down=60`, or just `1`; what cannot be read counts as not given."""
    found = parse_properties(text, default_key="order") if text else {}
    order, up = found.get("order", ""), found.get("up", "")
    return Startup(
        int(order) if order.isascii() and order.isdigit() else None, int(up) if up.isascii() and up.isdigit() else 0
    )


def _commands(reading: Reading) -> tuple[Command, ...]:
    found = [
        Command(path.rpartition("/")[2], entry.version, entry.content[:_MAX_COMMAND_BYTES].decode(errors="replace"))
        for path, entry in reading.files.items()
        if path.startswith(f"{COMMANDS_DIR}/") and path.count("/") == COMMANDS_DIR.count("/") + 1
    ]
    return tuple(sorted(found, key=lambda command: command.id))


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
