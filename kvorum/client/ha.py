"""HaService for Python callers. Nodes are given by their names."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from kvorum.errors import NotFound, Timeout
from kvorum.v1 import ha_pb2 as pb
from kvorum.v1.ha_pb2_grpc import HaServiceStub

if TYPE_CHECKING:
    from kvorum.client.connection import Connection

POLL_S = 0.3
UNFINISHED = ("waiting", "accepted")


class HaApi:
    def __init__(self, connection: "Connection") -> None:
        self._call = connection.call
        self._stub = HaServiceStub(connection.channel)

    # Resources

    def resources(self) -> list[pb.HaResource]:
        response: pb.ListHaResourcesResponse = self._call(self._stub.ListHaResources, pb.ListHaResourcesRequest())
        return list(response.resources)

    def add(
        self,
        sid: str,
        *,
        state: pb.HaRequestState.ValueType = pb.HA_REQUEST_STATE_STARTED,
        comment: str = "",
        max_restart: int | None = None,
        max_relocate: int | None = None,
        failback: bool | None = None,
        priority: int | None = None,
        force: bool = False,
    ) -> pb.AddHaResourceResponse:
        """Its warnings name nodes whose loss the cluster bears no longer. Raises Refused where it reserves for that, unless
        `force`."""
        resource = pb.HaResource(
            sid=sid,
            request_state=state,
            comment=comment,
            max_restart=max_restart,
            max_relocate=max_relocate,
            failback=failback,
            priority=priority,
        )
        response: pb.AddHaResourceResponse = self._call(
            self._stub.AddHaResource, pb.AddHaResourceRequest(resource=resource, force=force)
        )
        return response

    def update(
        self,
        sid: str,
        *,
        state: pb.HaRequestState.ValueType = pb.HA_REQUEST_STATE_UNSPECIFIED,
        comment: str | None = None,
        max_restart: int | None = None,
        max_relocate: int | None = None,
        failback: bool | None = None,
        priority: int | None = None,
    ) -> pb.HaResource:
        """What is not given stays as it is."""
        resource = pb.HaResource(
            sid=sid,
            request_state=state,
            comment=comment,
            max_restart=max_restart,
            max_relocate=max_relocate,
            failback=failback,
            priority=priority,
        )
        response: pb.UpdateHaResourceResponse = self._call(
            self._stub.UpdateHaResource, pb.UpdateHaResourceRequest(resource=resource)
        )
        return response.resource

    def set_state(self, sid: str, state: pb.HaRequestState.ValueType) -> pb.HaResource:
        return self.update(sid, state=state)

    def remove(self, sid: str) -> None:
        self._call(self._stub.RemoveHaResource, pb.RemoveHaResourceRequest(sid=sid))

    def status(self, *, with_reserve: bool = False) -> pb.GetHaStatusResponse:
        """`with_reserve`: also whether any node may die, which takes a second in a large cluster."""
        request = pb.GetHaStatusRequest(with_reserve=with_reserve)
        response: pb.GetHaStatusResponse = self._call(self._stub.GetHaStatus, request)
        return response

    # Commands: raise Refused with the manager's reason

    def migrate(self, sid: str, node: str) -> pb.HaCommand:
        request = pb.MigrateHaResourceRequest(sid=sid, target_node=node)
        response: pb.MigrateHaResourceResponse = self._call(self._stub.MigrateHaResource, request)
        return response.command

    def relocate(self, sid: str, node: str) -> pb.HaCommand:
        request = pb.RelocateHaResourceRequest(sid=sid, target_node=node)
        response: pb.RelocateHaResourceResponse = self._call(self._stub.RelocateHaResource, request)
        return response.command

    def stop(self, sid: str, *, timeout_s: int = 60) -> pb.HaCommand:
        request = pb.StopHaResourceRequest(sid=sid, timeout_seconds=timeout_s)
        response: pb.StopHaResourceResponse = self._call(self._stub.StopHaResource, request)
        return response.command

    def set_maintenance(self, node: str, *, enabled: bool) -> pb.HaCommand:
        request = pb.SetHaMaintenanceRequest(node=node, enabled=enabled)
        response: pb.SetHaMaintenanceResponse = self._call(self._stub.SetHaMaintenance, request)
        return response.command

    def disarm(self, *, for_s: int, mode: str = "freeze") -> pb.HaCommand:
        response: pb.DisarmHaResponse = self._call(
            self._stub.DisarmHa, pb.DisarmHaRequest(for_seconds=for_s, mode=mode)
        )
        return response.command

    def arm(self) -> pb.HaCommand:
        response: pb.ArmHaResponse = self._call(self._stub.ArmHa, pb.ArmHaRequest())
        return response.command

    def command(self, command_id: str) -> pb.HaCommand:
        """How it goes by now. Raises NotFound an hour after its end."""
        response: pb.GetHaCommandResponse = self._call(self._stub.GetHaCommand, pb.GetHaCommandRequest(id=command_id))
        return response.command

    def follow(self, command: pb.HaCommand, *, timeout_s: float | None = None) -> Iterator[pb.HaCommand]:
        """The command each time it has changed, the last of them ended. Raises Timeout."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        seen: pb.HaCommand | None = None
        while True:
            if command != seen:
                yield command
            if command.state not in UNFINISHED:
                return
            if deadline is not None and time.monotonic() > deadline:
                raise Timeout(f"{command.text} is still {command.state}: {command.cause}")
            time.sleep(POLL_S)
            seen, command = command, self.command(command.id)

    # Rules

    def rules(self) -> pb.ListHaRulesResponse:
        response: pb.ListHaRulesResponse = self._call(self._stub.ListHaRules, pb.ListHaRulesRequest())
        return response

    def rule(self, rule_id: str) -> pb.HaRule:
        """Raises NotFound."""
        for rule in self.rules().rules:
            if rule.id == rule_id:
                return rule
        raise NotFound(f"there is no rule {rule_id}", remedy="'kvorum ha rule list' shows all")

    def add_rule(self, rule: pb.HaRule, *, dry_run: bool = False) -> pb.HaRule:
        """Raises Refused with the smallest set of rules that it contradicts."""
        response: pb.AddHaRuleResponse = self._call(
            self._stub.AddHaRule, pb.AddHaRuleRequest(rule=rule, dry_run=dry_run)
        )
        return response.rule

    def replace_rule(self, rule: pb.HaRule) -> pb.HaRule:
        response: pb.ReplaceHaRuleResponse = self._call(self._stub.ReplaceHaRule, pb.ReplaceHaRuleRequest(rule=rule))
        return response.rule

    def remove_rule(self, rule_id: str) -> None:
        self._call(self._stub.RemoveHaRule, pb.RemoveHaRuleRequest(id=rule_id))

    # Profiles

    def profiles(self) -> Sequence[pb.HaProfile]:
        response: pb.ListHaProfilesResponse = self._call(self._stub.ListHaProfiles, pb.ListHaProfilesRequest())
        return list(response.profiles)

    def set_profile(self, name: str, *, watchdog_s: int = 0) -> pb.HaProfile:
        request = pb.SetHaProfileRequest(name=name, watchdog_seconds=watchdog_s)
        response: pb.SetHaProfileResponse = self._call(self._stub.SetHaProfile, request)
        return response.profile

    # What would be, and what was

    def simulate(self, killed: Iterable[str], *, any_nodes: int = 0) -> pb.SimulateHaResponse:
        """If these die together; or, with none named, any so many."""
        request = pb.SimulateHaRequest(killed_nodes=list(killed), any_nodes=any_nodes)
        response: pb.SimulateHaResponse = self._call(self._stub.SimulateHa, request)
        return response

    def plan_maintenance(self, node: str) -> pb.PlanHaMaintenanceResponse:
        response: pb.PlanHaMaintenanceResponse = self._call(
            self._stub.PlanHaMaintenance, pb.PlanHaMaintenanceRequest(node=node)
        )
        return response

    def explain(self, sid: str) -> pb.ExplainHaResourceResponse:
        response: pb.ExplainHaResourceResponse = self._call(
            self._stub.ExplainHaResource, pb.ExplainHaResourceRequest(sid=sid)
        )
        return response

    def records(self, *, node: str = "") -> pb.ListHaRecordsResponse:
        response: pb.ListHaRecordsResponse = self._call(self._stub.ListHaRecords, pb.ListHaRecordsRequest(node=node))
        return response
