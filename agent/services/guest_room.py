"""Puts together what the guests' services share in one agent: drivers, inventory, queue, migrations. One per context.

Also the agent's own work on guests: undoing what an agent that died left behind, and settling migrations that nobody looks
after. No request is served here.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from agent.context import AgentContext
from agent.guests.domain_xml import Host as DomainHost
from agent.guests.driver import Guest
from agent.guests.kvm import KvmDriver
from agent.guests.lxc import LxcDriver
from agent.inventory import GuestFile, GuestKind, Inventory, parse_guest_path
from agent.migration import relays
from agent.operations.arrival_rounds import settle_arrivals, sweep_strays
from agent.operations.arrivals import ArrivalDesk
from agent.operations.create import REMOVE_CONFIG, remove_reserved
from agent.operations.departures import settle_departures
from agent.operations.disks import owned_volumes
from agent.operations.host import Host
from agent.operations.migrate import MigrationDesk
from agent.operations.migration_plan import MigrationWish, plan_migration
from agent.operations.migration_records import Arrival, MigrationRecords
from agent.operations.power import END_LATE_START
from agent.operations.volumes import FREE_VOLUME
from agent.publishing import INTERVAL_S, Meter, Publisher
from agent.storage.storages import PATH as STORAGE_CFG
from agent.storage.storages import Storages
from ha import lease_state
from kvorum.errors import InvalidInput, KvorumError, NotFound, Refused, Unreachable
from kvorum.ids import NodeName, NodeUid, Vmid, Volid
from kvorum.v1 import replica_pb2

from .authored_store import AuthoredStore
from .migration_client import LibvirtMover, RemoteTarget

log = logging.getLogger(__name__)

ROUND_S = 2.0
_FIRST_TRY_S = 1.0

_rooms: list[tuple[AgentContext, "GuestRoom"]] = []


def room_of(context: AgentContext) -> "GuestRoom":
    """The one room of this agent, made when first asked for."""
    for known, room in _rooms:
        if known is context:
            return room
    room = GuestRoom(context)
    _rooms.append((context, room))
    return room


class VmDriver(KvmDriver):
    """The KVM driver of a node that learns at run time what it is: the probe takes seconds, the cluster comes later."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(DomainHost(accel="tcg"))
        self._context = context

    async def start(self, guest: Guest) -> None:
        await self.learn()
        await super().start(guest)

    async def learn(self) -> None:
        """Raises NotFound while the node is in no cluster."""
        accel: Literal["kvm", "tcg"] = "kvm" if await self._acceleration() == "kvm" else "tcg"
        self.host = dataclasses.replace(self.host, accel=accel, cluster=self._context.require_identity().cluster_name)

    async def _acceleration(self) -> str:
        """What the probe found; it boots something small, so a first guest may have to wait for it."""
        for _ in range(300):
            if found := self._context.acceleration():
                return found
            await asyncio.sleep(0.1)
        return ""


class GuestRoom:
    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._records = MigrationRecords(context.paths.tasks.parent / "migrations")
        self._records.load()
        self.vms = VmDriver(context)
        self.host = Host(
            node=lambda: context.require_identity().node_name,
            store=AuthoredStore(context.store),
            inventory=Inventory(context.store),
            drivers={GuestKind.vm: self.vms, GuestKind.container: LxcDriver(log_directory=context.paths.log)},
            storages=self._storages,
            lease=lambda: lease_state.read(context.paths.keeper / lease_state.STATE_FILE.name),
            is_migrating=self._records.is_moving,
        )
        mover = LibvirtMover(self.vms.link, context.peers.agent, self._uid_of, context.paths.pki)
        self.migration_desk = MigrationDesk(
            host=self.host,
            records=self._records,
            mover=mover,
            target=lambda node: RemoteTarget(node, context.peers.agent),
            resume=self.vms.resume,
        )
        self.arrivals = ArrivalDesk(
            host=self.host,
            records=self._records,
            address=lambda: context.require_identity().address,
            serve_relays=self._serve_relays,
            prepare_driver=self.vms.prepare,
            resume=self.vms.resume,
            is_whole=mover.is_whole,
        )

    def look_after(self) -> None:
        """Start what this room does by itself, for as long as the agent lives."""
        background = self._context.background
        background.start("libvirt", self.vms.run())
        background.start("guests", self._rounds())
        background.start("late starts", self._context.tasks.outlast(END_LATE_START, self._end_late_start))
        background.start("load", self._publish())

    async def migration_wish(
        self, file: GuestFile, target: NodeName, *, with_local_disks: bool, bandwidth_limit: int, restart: bool
    ) -> MigrationWish:
        """Raises at once what can be seen at once, so that no task is begun in vain."""
        wish = MigrationWish(file.vmid, target, with_local_disks, bandwidth_limit, restart)
        plan_migration(file, (await self.host.observe(file)).state, wish, await self.host.storages())
        member = await self._member(target)
        if member.witness:
            raise Refused(f"node {target} is a witness and runs no guests", remedy="name another node")
        if not member.connected:
            raise Unreachable(f"node {target} is offline", remedy="see 'kvorum node list'")
        return wish

    async def _storages(self) -> Storages:
        try:
            text = (await self._context.store.get(STORAGE_CFG)).content
        except NotFound:
            text = b""
        return Storages.parse(text, self.host.node())

    async def _uid_of(self, node: NodeName) -> NodeUid:
        return NodeUid((await self._member(node)).uid)

    async def _member(self, node: NodeName) -> replica_pb2.Member:
        status = await self._context.store.status()
        for member in status.members:
            if member.name == node:
                return member
        raise InvalidInput(f"{node} is no node of this cluster", field="target_node", remedy="see 'kvorum node list'")

    @contextlib.asynccontextmanager
    async def _serve_relays(self, arrival: Arrival) -> AsyncIterator[None]:
        source = await self._uid_of(NodeName(arrival.source))
        ports = {relays.Kind.memory: arrival.memory_port, relays.Kind.disks: arrival.disk_port}
        async with contextlib.AsyncExitStack() as stack:
            for kind, port in ports.items():
                serving = relays.serve(
                    relays.socket_path(arrival.migration_id, kind),
                    address=self._context.require_identity().address,
                    port=port,
                    source=source,
                    pki=self._context.paths.pki,
                )
                await stack.enter_async_context(serving)
            yield

    async def _rounds(self) -> None:
        await self._until_done("what an earlier agent left", self._recover)
        while True:
            with contextlib.suppress(NotFound):
                await settle_departures(self.migration_desk)
                await settle_arrivals(self.arrivals)
            await asyncio.sleep(ROUND_S)

    async def _publish(self) -> None:
        store = self._context.store
        publisher = Publisher(inventory=self.host.inventory, drivers=self.host.drivers, cluster=store, meter=Meter())
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await publisher.publish(self._context.require_identity().node_name, now_s=int(time.time()))
            except (KvorumError, OSError, ValueError) as error:
                log.debug("the load is not published: %s", error)

    async def _recover(self) -> None:
        self._context.require_identity()
        await sweep_strays(self.arrivals)
        await self._context.tasks.recover(
            {FREE_VOLUME: self._free_volume, REMOVE_CONFIG: self._remove_config}, apart={END_LATE_START}
        )

    async def _until_done(self, what: str, work: Any) -> None:
        """The store, libvirt and the majority may come later than the agent."""
        said = ""
        while True:
            try:
                await work()
                return
            except KvorumError as error:
                if error.message != said:
                    log.info("%s: not yet: %s", what, error.message)
                    said = error.message
            await asyncio.sleep(_FIRST_TRY_S)

    async def _end_late_start(self, arguments: Mapping[str, str]) -> None:
        """HA waits for it before it says of the guest that its start has failed. In the guest's turn, so that a new start is not
        taken for the old one."""
        vmid = Vmid(int(arguments["vmid"]))

        async def in_turn() -> None:
            async with self.host.queue.turn(vmid, "end a late start"):
                await self.vms.end_late_start(vmid)

        await self._until_done(f"the end of a start of guest {vmid}", in_turn)

    async def _free_volume(self, arguments: Mapping[str, str]) -> None:
        """Unless a guest that was finished after all has it: between its last write and the task's end there is a moment."""
        volid = Volid(arguments["volid"])
        for file in await self.host.inventory.all():
            if file.config.get("lock") != "create" and volid in owned_volumes(file.config, file.kind, file.vmid):
                return
        await (await self.host.storages()).free(volid)

    async def _remove_config(self, arguments: Mapping[str, str]) -> None:
        if parse_guest_path(arguments["path"]) is not None:
            await remove_reserved(self.host, arguments["path"])
