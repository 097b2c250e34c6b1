"""What a round reads from the store."""

from functools import partial
from typing import cast

from clusterfs.client import Listing, StoreClient
from ha.leases import FAST, LONGEST_TAKEOVER_S, PATIENT, Lease
from ha.status import MANAGER_STATUS
from ha.view import Node
from ha.world import Absences, read_store
from kvorum.errors import NotFound
from kvorum.ids import NodeName, NodeUid
from kvorum.v1 import replica_pb2, store_pb2


class FakeStore:
    """A tree of files at one log index. Only what a round asks for."""

    def __init__(self, files: dict[str, bytes], index: int) -> None:
        self.files = files
        self.index = index

    async def list(self, path: str, *, recursive: bool, with_content: bool) -> Listing:
        found = [
            store_pb2.Entry(path=name, content=content, version=self.index)
            for name, content in sorted(self.files.items())
            if name.startswith(f"{path}/")
        ]
        if not found:
            raise NotFound(f"there is no {path}")
        return Listing(tuple(found), self.index)

    async def status(self) -> replica_pb2.GetReplicaStatusResponse:
        return replica_pb2.GetReplicaStatusResponse(active=True, ready=True)

    async def list_leases(self) -> replica_pb2.ListLeasesResponse:
        return replica_pb2.ListLeasesResponse()


async def test_a_reading_knows_how_new_it_is_and_the_versions_of_its_files() -> None:
    store = FakeStore({MANAGER_STATUS: b"{}", "nodes/n1/lrm_status": b"{}"}, 40)
    reading = await read_store(cast(StoreClient, store))
    assert (reading.applied_index, reading.content(MANAGER_STATUS), reading.version(MANAGER_STATUS)) == (40, b"{}", 40)
    assert (reading.content("ha/resources.cfg"), reading.version("ha/resources.cfg")) == (b"", 0)


async def test_a_removed_directory_ha_does_not_make_every_later_reading_look_old() -> None:
    store = FakeStore({MANAGER_STATUS: b"{}", "nodes/n1/lrm_status": b"{}"}, 40)
    newest = (await read_store(cast(StoreClient, store))).applied_index
    del store.files[MANAGER_STATUS]
    store.index = 41
    assert (await read_store(cast(StoreClient, store))).applied_index >= newest


def test_absence_counts_from_the_first_look_and_ends_with_a_return() -> None:
    absences = Absences()
    look = partial(absences.look, longest_s=9.0)
    assert look(["n1", "n2", ""], _members("n1", "n2"), now=90.0) == {}
    assert look(["n1", "n2", ""], _members("n1", "n3"), now=100.0) == {"n2": FAST.takeover_after_s}
    assert look(["n1", "n2"], _members("n1", "n3"), now=109.0) == {"n2": FAST.takeover_after_s - 9.0}
    assert look(["n1", "n2"], _members("n1", "n2"), now=110.0) == {}
    assert look(["n1", "n2"], _members("n1"), now=111.0) == {"n2": FAST.takeover_after_s}


def test_a_node_that_was_gone_before_anybody_looked_may_have_had_the_longest_lease() -> None:
    assert Absences().look(["n2"], _members("n1"), 9.0, 100.0) == {"n2": LONGEST_TAKEOVER_S}


def test_a_node_that_leaves_just_after_a_longer_profile_was_chosen_may_live_by_it() -> None:
    absences = Absences()
    absences.look(["n2"], _members("n1", "n2"), FAST.takeover_after_s, 100.0)
    assert absences.look(["n2"], _members("n1"), PATIENT.takeover_after_s, 100.5) == {"n2": PATIENT.takeover_after_s}


def _members(*names: str) -> dict[NodeName, Node]:
    lease = Lease(1, 1, False, 0.0, FAST.terms)
    return {NodeName(name): Node(NodeName(name), NodeUid(f"u-{name}"), lease) for name in names}
