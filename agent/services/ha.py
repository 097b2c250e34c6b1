"""HaService: what HA shall keep running, how that goes, and what operators ask of it.

Asks nobody but this node's store, and writes files there in the caller's name; every node answers the same. The decisions are
made in the `ha` room, commands carried out by its manager. Thin: a method reads, calls, and tells.
"""

# ruff: noqa: N802 - the methods are named by the proto

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from agent.context import AgentContext
from agent.inventory import Inventory
from agent.operations import ha_commands, ha_explain, ha_reserve, ha_resources, ha_rules
from agent.operations.ha_picture import Painter, Picture, problems_of
from agent.operations.ha_profile import choose_profile, profiles
from agent.operations.ha_resources import HaResources
from ha import foresight
from ha.resources import sid_of
from kvorum.errors import ConfigError, InvalidInput, NotFound, Refused
from kvorum.ids import NodeName, Sid, Vmid, node_resource, parse_sid
from kvorum.node import Identity
from kvorum.v1 import ha_pb2 as pb
from kvorum.v1 import ha_pb2_grpc

from . import ha_messages as messages
from .authored_store import AuthoredStore
from .hung_starts import HungStarts, hang, hang_remedy, none_hangs

if TYPE_CHECKING:
    from clusterfs.client import StoreClient


def register(server: Any, context: AgentContext) -> None:
    service = HaService(context.store, context.require_identity, HungStarts(context).since)
    ha_pb2_grpc.add_HaServiceServicer_to_server(service, server)


class HaService(ha_pb2_grpc.HaServiceServicer):
    """`hung_since`: of a node and a guest, seconds since the epoch, 0 when no start hangs there."""

    def __init__(
        self,
        store: "StoreClient",
        identity: Callable[[], Identity],
        hung_since: Callable[[str, Vmid], Awaitable[float]] = none_hangs,
    ) -> None:
        self._client = store
        self._identity = identity
        self._hung_since = hung_since
        self._store = AuthoredStore(store)
        self._painter = Painter(store)
        self._inventory = Inventory(self._store)

    # Resources

    async def ListHaResources(self, request: pb.ListHaResourcesRequest, context: Any) -> pb.ListHaResourcesResponse:
        resources = [one for one in await self._resources(await self._picture()) if one.sid > request.page_token]
        page = resources[: request.page_size] if request.page_size > 0 else resources
        more = len(page) < len(resources)
        return pb.ListHaResourcesResponse(resources=page, next_page_token=page[-1].sid if more and page else "")

    async def AddHaResource(self, request: pb.AddHaResourceRequest, context: Any) -> pb.AddHaResourceResponse:
        wish = request.resource
        kind, vmid = parse_sid(wish.sid)
        guest = await self._inventory.find(vmid)
        if guest.kind != kind:
            raise InvalidInput(f"guest {vmid} is {guest.sid}", field="sid", remedy=f"add {guest.sid}")
        state = messages.request_of(wish) or ha_resources.STARTED
        admission = ha_reserve.Admission()
        if state == ha_resources.STARTED:
            picture = await self._picture()
            admission = await asyncio.to_thread(ha_reserve.admit, picture, Sid(wish.sid), is_forced=request.force)
        edit = ha_resources.added(wish.sid, state, wish.comment, messages.entries_of(wish))
        await ha_resources.change(self._store, edit, reason=f"HA: add {wish.sid}")
        return pb.AddHaResourceResponse(resource=await self._resource(wish.sid), warnings=admission.warnings)

    async def UpdateHaResource(self, request: pb.UpdateHaResourceRequest, context: Any) -> pb.UpdateHaResourceResponse:
        wish = request.resource
        edit = ha_resources.updated(
            wish.sid,
            state=messages.request_of(wish),
            comment=wish.comment if wish.HasField("comment") else None,
            more=messages.entries_of(wish),
        )
        await ha_resources.change(self._store, edit, reason=f"HA: update {wish.sid}")
        return pb.UpdateHaResourceResponse(resource=await self._resource(wish.sid))

    async def RemoveHaResource(self, request: pb.RemoveHaResourceRequest, context: Any) -> pb.RemoveHaResourceResponse:
        await ha_resources.change(self._store, ha_resources.removed(request.sid), reason=f"HA: remove {request.sid}")
        return pb.RemoveHaResourceResponse()

    async def GetHaStatus(self, request: pb.GetHaStatusRequest, context: Any) -> pb.GetHaStatusResponse:
        picture = await self._picture()
        status, now = picture.view.status, time.time()
        response = pb.GetHaStatusResponse(
            quorate=picture.is_quorate,
            manager_node=node_resource(status.master_node) if status.master_node else "",
            nodes=[messages.node_message(picture, picture.view.nodes[name]) for name in sorted(picture.view.nodes)],
            resources=await self._resources(picture),
            disarm=messages.disarm_message(picture, now),
            problems=problems_of(picture),
        )
        with suppress(ConfigError):  # then it is among the problems
            response.profile.CopyFrom(messages.profile_message(picture.settings().profile, is_chosen=True))
        if request.with_reserve and status.service_status:
            found = await asyncio.to_thread(ha_reserve.reserve_of, picture)
            response.reserve.CopyFrom(messages.reserve_message(found))
        return response

    # Commands

    async def MigrateHaResource(
        self, request: pb.MigrateHaResourceRequest, context: Any
    ) -> pb.MigrateHaResourceResponse:
        text = ha_commands.move_text("migrate", request.sid, request.target_node)
        return pb.MigrateHaResourceResponse(command=await self._give(text))

    async def RelocateHaResource(
        self, request: pb.RelocateHaResourceRequest, context: Any
    ) -> pb.RelocateHaResourceResponse:
        text = ha_commands.move_text("relocate", request.sid, request.target_node)
        return pb.RelocateHaResourceResponse(command=await self._give(text))

    async def StopHaResource(self, request: pb.StopHaResourceRequest, context: Any) -> pb.StopHaResourceResponse:
        text = ha_commands.stop_text(request.sid, request.timeout_seconds)
        return pb.StopHaResourceResponse(command=await self._give(text))

    async def SetHaMaintenance(self, request: pb.SetHaMaintenanceRequest, context: Any) -> pb.SetHaMaintenanceResponse:
        text = ha_commands.maintenance_text(request.node, is_enabled=request.enabled)
        return pb.SetHaMaintenanceResponse(command=await self._give(text))

    async def DisarmHa(self, request: pb.DisarmHaRequest, context: Any) -> pb.DisarmHaResponse:
        text = ha_commands.disarm_text(request.mode or ha_commands.MODES[0], request.for_seconds)
        return pb.DisarmHaResponse(command=await self._give(text))

    async def ArmHa(self, request: pb.ArmHaRequest, context: Any) -> pb.ArmHaResponse:
        return pb.ArmHaResponse(command=await self._give(ha_commands.arm_text()))

    async def GetHaCommand(self, request: pb.GetHaCommandRequest, context: Any) -> pb.GetHaCommandResponse:
        asked = await ha_commands.look(self._store, request.id)
        return pb.GetHaCommandResponse(command=messages.command_message(asked))

    # Rules

    async def ListHaRules(self, request: pb.ListHaRulesRequest, context: Any) -> pb.ListHaRulesResponse:
        file = await ha_rules.RulesFile.load(self._store)
        compiled = ha_rules.compiled(file.rules, await self._node_names())
        view = (await self._picture()).view
        return pb.ListHaRulesResponse(
            rules=[messages.rule_message(rule) for rule in file.rules],
            conflicts=[messages.conflict_message(conflict) for conflict in compiled.conflicts],
            problems=[str(problem) for problem in file.rules.problems],
            remarks=view.rules.remarks,
        )

    async def AddHaRule(self, request: pb.AddHaRuleRequest, context: Any) -> pb.AddHaRuleResponse:
        rule = messages.rule_of(request.rule)
        await ha_rules.change(
            self._store,
            ha_rules.added(rule),
            await self._node_names(),
            reason=f"HA: add rule {rule.id}",
            is_dry_run=request.dry_run,
        )
        return pb.AddHaRuleResponse(rule=messages.rule_message(rule))

    async def ReplaceHaRule(self, request: pb.ReplaceHaRuleRequest, context: Any) -> pb.ReplaceHaRuleResponse:
        rule = messages.rule_of(request.rule)
        reason = f"HA: change rule {rule.id}"
        await ha_rules.change(self._store, ha_rules.replaced(rule), await self._node_names(), reason=reason)
        return pb.ReplaceHaRuleResponse(rule=messages.rule_message(rule))

    async def RemoveHaRule(self, request: pb.RemoveHaRuleRequest, context: Any) -> pb.RemoveHaRuleResponse:
        reason = f"HA: remove rule {request.id}"
        await ha_rules.change(self._store, ha_rules.removed(request.id), await self._node_names(), reason=reason)
        return pb.RemoveHaRuleResponse()

    # Profiles

    async def ListHaProfiles(self, request: pb.ListHaProfilesRequest, context: Any) -> pb.ListHaProfilesResponse:
        found, chosen = await profiles(self._store)
        return pb.ListHaProfilesResponse(
            profiles=[messages.profile_message(one, is_chosen=one.name == chosen) for one in found]
        )

    async def SetHaProfile(self, request: pb.SetHaProfileRequest, context: Any) -> pb.SetHaProfileResponse:
        profile = await choose_profile(self._store, request.name, request.watchdog_seconds)
        return pb.SetHaProfileResponse(profile=messages.profile_message(profile, is_chosen=True))

    # What would be

    async def SimulateHa(self, request: pb.SimulateHaRequest, context: Any) -> pb.SimulateHaResponse:
        picture = await self._picture()
        killed = frozenset(picture.node(name, field="killed_nodes") for name in request.killed_nodes)
        if killed and request.any_nodes:
            raise InvalidInput("name nodes, or say how many", field="any_nodes", remedy="give one of the two")
        if request.any_nodes:
            found = await asyncio.to_thread(ha_reserve.reserve_of, picture, request.any_nodes)
            return pb.SimulateHaResponse(starts_after_seconds=-1.0, reserve=messages.reserve_message(found))
        if not killed:
            raise InvalidInput("name the nodes that die", field="killed_nodes", remedy="kvorum ha simulate --kill n2")
        unmanaged = foresight.unmanaged(picture.view, killed)
        if not picture.keeps_quorum_without(killed):
            return pb.SimulateHaResponse(keeps_quorum=False, starts_after_seconds=-1.0, unmanaged=unmanaged)
        outcomes = await asyncio.to_thread(foresight.if_killed, picture.view, killed, time.time())
        return pb.SimulateHaResponse(
            keeps_quorum=True,
            outcomes=[messages.outcome_message(outcome) for outcome in outcomes],
            starts_after_seconds=foresight.starts_after_s(picture.view, killed),
            unmanaged=unmanaged,
        )

    async def PlanHaMaintenance(
        self, request: pb.PlanHaMaintenanceRequest, context: Any
    ) -> pb.PlanHaMaintenanceResponse:
        picture = await self._picture()
        node: NodeName = picture.node(request.node)
        plan = await asyncio.to_thread(foresight.if_drained, picture.view, node, time.time())
        if isinstance(plan, foresight.Refusal):
            raise Refused(f"{node} cannot be put into maintenance: {plan.cause}", remedy="'kvorum ha status' says more")
        return pb.PlanHaMaintenanceResponse(
            outcomes=[messages.outcome_message(outcome) for outcome in plan],
            unmanaged=foresight.unmanaged(picture.view, (node,)),
        )

    async def ExplainHaResource(
        self, request: pb.ExplainHaResourceRequest, context: Any
    ) -> pb.ExplainHaResourceResponse:
        parse_sid(request.sid)
        picture = await self._picture()
        resource = next((one for one in await self._resources(picture) if one.sid == request.sid), None)
        if resource is None:
            raise NotFound(f"{request.sid} is not managed by HA", remedy=f"add it with 'kvorum ha add {request.sid}'")
        told = await asyncio.to_thread(ha_explain.tell, picture, Sid(request.sid), time.time())
        service = picture.view.status.service_status.get(request.sid)
        if service is not None and told.fence_in_s < 0:  # else its node is silent, and would only be waited for
            since = await self._hung_since(service.node, parse_sid(request.sid)[1])
            if since:
                resource.cause = hang(service.node, time.time() - since)
                resource.remedies[:] = [hang_remedy(service.node)]
        return pb.ExplainHaResourceResponse(
            resource=resource, placement=told.placement, if_lost=told.if_lost, fence_in_seconds=told.fence_in_s
        )

    async def ListHaRecords(self, request: pb.ListHaRecordsRequest, context: Any) -> pb.ListHaRecordsResponse:
        picture = await self._picture()
        names = [picture.node(request.node)] if request.node else sorted(picture.view.nodes)
        return pb.ListHaRecordsResponse(
            records=messages.record_messages(picture, names),
            silent_nodes=[node_resource(name) for name in names if name not in picture.keepers],
        )

    async def _picture(self) -> Picture:
        return await self._painter.paint(self._identity())

    async def _give(self, text: str) -> pb.HaCommand:
        return messages.command_message(await ha_commands.give(self._store, text))

    async def _node_names(self) -> list[NodeName]:
        members = (await self._client.status()).members
        return sorted(NodeName(member.name) for member in members if not member.witness)

    async def _resource(self, sid: str) -> pb.HaResource:
        return next(one for one in await self._resources(await self._picture()) if one.sid == sid)

    async def _resources(self, picture: Picture) -> list[pb.HaResource]:
        """Those of the file as it is now: a change that was just made is in it."""
        found = await HaResources.load(self._store)
        places, services = messages.places_of(picture), picture.view.status.service_status
        sections = sorted((sid_of(section), section) for section in found.config)
        now = time.time()
        return [
            messages.resource_message(section, services.get(sid), places.get(sid, ""), now) for sid, section in sections
        ]
