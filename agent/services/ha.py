"""HaService: what HA shall keep running (a file in the store) and how that goes (what the manager wrote, and the leases).

Asks nobody but this node's store; every node answers the same. The decisions are made in the `ha` room.
"""

from typing import Any

from agent.context import AgentContext
from agent.inventory import Inventory
from agent.operations import ha_resources
from agent.operations.ha_resources import HaResources
from ha.status import MANAGER_STATUS, ManagerStatus, Service, parse_manager_status
from kvorum.config import Section
from kvorum.errors import InvalidInput, NotFound
from kvorum.ids import node_resource, parse_sid
from kvorum.v1 import ha_pb2 as pb
from kvorum.v1 import ha_pb2_grpc, replica_pb2

from .authored_store import AuthoredStore
from .guest_room import room_of

_REQUESTS = {ha_resources.STARTED: pb.HA_REQUEST_STATE_STARTED, ha_resources.STOPPED: pb.HA_REQUEST_STATE_STOPPED}


def register(server: Any, context: AgentContext) -> None:
    ha_pb2_grpc.add_HaServiceServicer_to_server(HaService(context), server)


class HaService(ha_pb2_grpc.HaServiceServicer):
    def __init__(self, context: AgentContext) -> None:
        self._store = context.store
        self._authored = AuthoredStore(context.store)
        self._inventory: Inventory = room_of(context).host.inventory

    async def ListHaResources(  # noqa: N802
        self, request: pb.ListHaResourcesRequest, context: Any
    ) -> pb.ListHaResourcesResponse:
        resources = await self._resources()
        after = request.page_token
        resources = [resource for resource in resources if resource.sid > after]
        page = resources[: request.page_size] if request.page_size > 0 else resources
        more = len(page) < len(resources)
        return pb.ListHaResourcesResponse(resources=page, next_page_token=page[-1].sid if more and page else "")

    async def AddHaResource(self, request: pb.AddHaResourceRequest, context: Any) -> pb.AddHaResourceResponse:  # noqa: N802
        wish = request.resource
        kind, vmid = parse_sid(wish.sid)
        guest = await self._inventory.find(vmid)
        if guest.kind != kind:
            raise InvalidInput(f"guest {vmid} is {guest.sid}", field="sid", remedy=f"add {guest.sid}")
        state = _state_of(wish.request_state) or ha_resources.STARTED
        edit = ha_resources.added(wish.sid, state, wish.comment)
        await ha_resources.change(self._authored, edit, reason=f"HA: add {wish.sid}")
        return pb.AddHaResourceResponse(resource=await self._resource(wish.sid))

    async def UpdateHaResource(  # noqa: N802
        self, request: pb.UpdateHaResourceRequest, context: Any
    ) -> pb.UpdateHaResourceResponse:
        wish = request.resource
        edit = ha_resources.updated(wish.sid, state=_state_of(wish.request_state), comment=wish.comment or None)
        await ha_resources.change(self._authored, edit, reason=f"HA: update {wish.sid}")
        return pb.UpdateHaResourceResponse(resource=await self._resource(wish.sid))

    async def RemoveHaResource(  # noqa: N802
        self, request: pb.RemoveHaResourceRequest, context: Any
    ) -> pb.RemoveHaResourceResponse:
        await ha_resources.change(self._authored, ha_resources.removed(request.sid), reason=f"HA: remove {request.sid}")
        return pb.RemoveHaResourceResponse()

    async def GetHaStatus(self, request: pb.GetHaStatusRequest, context: Any) -> pb.GetHaStatusResponse:  # noqa: N802
        status = await self._manager_status()
        leases = await self._store.list_leases()
        members = (await self._store.status()).members
        names = {member.uid: member.name for member in members if not member.witness}
        held = [lease for lease in leases.leases if lease.uid in names]
        leases_by_name = {names[lease.uid]: lease for lease in held if not lease.resting}
        special = {
            names[lease.uid]: "fence" if lease.fenced else "idle" for lease in held if lease.fenced or lease.resting
        }
        nodes = [
            pb.HaNode(
                name=node_resource(name),
                state=special[name] if name in special else str(status.node_status.get(name, "unknown")),
                lease_age_seconds=leases_by_name[name].age_seconds if name in leases_by_name else -1.0,
                fence_in_seconds=fence_in_s(leases_by_name.get(name)),
                takeover_after_seconds=takeover_s(leases_by_name.get(name)),
            )
            for name in sorted(names.values())
        ]
        return pb.GetHaStatusResponse(
            quorate=leases.quorate,
            manager_node=node_resource(status.master_node) if status.master_node else "",
            nodes=nodes,
            resources=await self._resources(status),
        )

    async def _resource(self, sid: str) -> pb.HaResource:
        return next(resource for resource in await self._resources() if resource.sid == sid)

    async def _resources(self, status: ManagerStatus | None = None) -> list[pb.HaResource]:
        found = await HaResources.load(self._store)
        status = status or await self._manager_status()
        places = {file.sid: file.node for file in await self._inventory.all()}
        return [
            to_message(section, status.service_status.get(sid), places.get(sid, ""))  # type: ignore[call-overload]
            for sid, section in sorted((ha_resources.sid_of(section), section) for section in found.config)
        ]

    async def _manager_status(self) -> ManagerStatus:
        """An empty one while no manager has written any."""
        try:
            return parse_manager_status((await self._store.get(MANAGER_STATUS)).content)
        except NotFound:
            return ManagerStatus()


def to_message(section: Section, service: Service | None, place: str) -> pb.HaResource:
    """`place`: the node that owns the guest's file, empty when there is no such guest."""
    resource = pb.HaResource(
        sid=ha_resources.sid_of(section),
        request_state=_REQUESTS.get(ha_resources.request_state(section), pb.HA_REQUEST_STATE_UNSPECIFIED),
        comment=section.get("comment", ""),
        node=node_resource(place) if place else "",
    )
    if service is not None:
        resource.state = service.state
        resource.cause = service.cause
    elif not place:
        resource.cause = "there is no such guest"
    return resource


def fence_in_s(lease: replica_pb2.Lease | None) -> float:
    """When guests of that node may start elsewhere, from now; negative while its lease is fresh or was never taken."""
    if lease is None or lease.age_seconds < lease.terms.pause_after_ms / 1000:
        return -1.0
    return max(0.0, takeover_s(lease) - lease.age_seconds)


def takeover_s(lease: replica_pb2.Lease | None) -> float:
    """T, as the node itself put it into its lease."""
    return lease.terms.takeover_after_ms / 1000 if lease is not None else -1.0


def _state_of(value: int) -> str | None:
    return next((state for state, number in _REQUESTS.items() if number == value), None)
