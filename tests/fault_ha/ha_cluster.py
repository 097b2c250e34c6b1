"""Looking at the lab's HA from outside, and waiting until all of it is well."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from array_control import StorageArray
from cluster.guest_lab import client_of
from ha_guests import SIDS, VMIDS
from ha_stamps import stamps

from ha.lease_state import LIVE, LeaseState
from ha.lease_state import read as read_lease
from kvorum.errors import KvorumError, Timeout
from kvorum.v1 import ha_pb2
from lab.cluster import Lab
from lab.node import Node
from lab.single_run import SingleRunWatch

WELL_S = 90.0
_KEEPER_STATE = "/run/kvorum/keeper/state.json"

Answer = TypeVar("Answer")


class Cluster:
    def __init__(self, lab: Lab, array: StorageArray, watch: SingleRunWatch) -> None:
        self.lab, self.array, self.watch = lab, array, watch

    # Asking

    def status(self) -> ha_pb2.GetHaStatusResponse | None:
        """Of any node that is on, runs and is not cut off; None while nobody can say, as between two leaders."""
        isolated, _ = self.lab.switch.cuts()
        for node in self.lab.nodes:
            if node.is_on and not node.is_frozen and node.layout.switch_port not in isolated:
                with suppress(KvorumError), client_of(node) as client:
                    found: ha_pb2.GetHaStatusResponse = client.ha.status()
                    return found
        return None

    def home(self) -> Node:
        """Where the guests are."""
        found = self._known()
        return self.lab.node(_resource(found, SIDS[0]).node.removeprefix("nodes/"))

    def manager(self) -> Node:
        return self.lab.node(self._known().manager_node.removeprefix("nodes/"))

    def leases(self) -> Mapping[str, LeaseState]:
        """By node, as each keeper says it; only of those that are on."""
        return {node.name: read_lease(node.path(_KEEPER_STATE)) for node in self.lab.nodes if node.is_on}

    def boots(self) -> dict[str, str]:
        """The newest boot of each guest, by what it has stamped; none is missing once all is well."""
        entries = self.array.entries()
        return {sid: own[-1].boot for sid, vmid in VMIDS.items() if (own := stamps(entries, vmid))}

    def has_stamped_since(self, moment_s: float) -> bool:
        """All of them."""
        last = {entry.vmid: entry.time_s for entry in self.array.entries() if entry.boot}
        return all(last.get(vmid, 0.0) > moment_s for vmid in VMIDS.values())

    # Waiting

    def wait_well(self, *, profile: str = "") -> None:
        """Until three nodes hold leases (of that profile) and all guests run and stamp on one of them. Raises Timeout."""
        wait_for(lambda: self.is_well(profile), "three nodes online and all guests running on one", patience_s=WELL_S)
        begin = time.monotonic()
        wait_for(lambda: self.has_stamped_since(begin), "a stamp of each guest")

    def is_well(self, profile: str = "") -> bool:
        found = self.status()
        if found is None or not found.manager_node or [node.state for node in found.nodes] != ["online"] * 3:
            return False
        leases = self.leases()
        if len(leases) != 3 or any(
            lease.phase != LIVE or (profile and lease.profile.name != profile) for lease in leases.values()
        ):
            return False
        resources = [_resource(found, sid) for sid in SIDS]
        homes = {resource.node.removeprefix("nodes/") for resource in resources}
        if len(homes) != 1 or any(one.state != "started" or not one.cause.endswith("runs it") for one in resources):
            return False
        return all(self.watch.where(sid) == homes for sid in SIDS)

    def move(self, target: Node) -> None:
        """All guests there, by HA's own command."""
        target.run(["kvorum", "--timeout", "60", "ha", "migrate", SIDS[0], target.name], timeout_s=90.0)
        wait_for(lambda: self.home().name == target.name and self.is_well(), f"the guests on {target.name}")

    def _known(self) -> ha_pb2.GetHaStatusResponse:
        return wait_for(self.status, "HA's status")


def wait_for(look: Callable[[], Answer | None], what: str, *, patience_s: float = 60.0) -> Answer:
    """Raises Timeout."""
    deadline = time.monotonic() + patience_s
    while True:
        if found := look():
            return found
        if time.monotonic() > deadline:
            raise Timeout(f"waited in vain for {what}", remedy="the logs that are kept tell more")
        time.sleep(0.05)


def _resource(found: ha_pb2.GetHaStatusResponse, sid: str) -> ha_pb2.HaResource:
    return next((one for one in found.resources if one.sid == sid), ha_pb2.HaResource())
