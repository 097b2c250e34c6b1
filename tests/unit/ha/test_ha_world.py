"""What a round reads from the store."""

from typing import cast

from clusterfs.client import Listing, StoreClient
from ha.status import MANAGER_STATUS
from ha.world import Absences, read_store
from kvorum.errors import NotFound
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
    assert absences.look(["n1", "n2", ""], ["n1", "n3"], 100.0) == {"n2": 0.0}
    assert absences.look(["n1", "n2"], ["n1", "n3"], 109.0) == {"n2": 9.0}
    assert absences.look(["n1", "n2"], ["n1", "n2"], 110.0) == {}
    assert absences.look(["n1", "n2"], ["n1"], 111.0) == {"n2": 0.0}
