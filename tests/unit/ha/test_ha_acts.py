"""What the manager's decisions do to the store, each guarded by what it was decided on."""

from typing import Any, cast

import pytest

from clusterfs.client import StoreClient
from ha.acts import Acts
from ha.manager import FenceLease, ForgetCommand, MoveConfig, RequestStopped
from kvorum.errors import NoQuorum, NotFound, Refused, StaleVersion
from kvorum.ids import NodeName, NodeUid, Sid
from kvorum.v1 import store_pb2

OLD, NEW = "nodes/n1/qemu-server/100.conf", "nodes/n2/qemu-server/100.conf"
RESOURCES = "ha/resources.cfg"


class FakeStore:
    """Files with versions; the fence is refused when `has_renewed`."""

    def __init__(self, files: dict[str, bytes], *, has_renewed: bool = False) -> None:
        self.files = {path: (content, 5) for path, content in files.items()}
        self.has_renewed = has_renewed
        self.fenced: list[tuple[str, int, int]] = []

    async def get(self, path: str, **_: Any) -> store_pb2.Entry:
        content, version = self._at(path)
        return store_pb2.Entry(path=path, content=content, version=version)

    async def write(self, path: str, content: bytes, *, expected_version: int, **_: Any) -> store_pb2.Entry:
        self._check(path, expected_version)
        self.files[path] = (content, expected_version + 1)
        return store_pb2.Entry(path=path, version=expected_version + 1)

    async def move(self, path: str, new_path: str, *, expected_version: int, **_: Any) -> None:
        self._check(path, expected_version)
        self.files[new_path] = self.files.pop(path)

    async def delete(self, path: str, *, expected_version: int, **_: Any) -> None:
        self._check(path, expected_version)
        del self.files[path]

    async def fence_lease(self, uid: str, incarnation: int, renewal: int, **_: Any) -> None:
        if self.has_renewed:
            raise StaleVersion("the lease went on")
        self.fenced.append((uid, incarnation, renewal))

    def _at(self, path: str) -> tuple[bytes, int]:
        if path not in self.files:
            raise NotFound(f"there is no {path}")
        return self.files[path]

    def _check(self, path: str, version: int) -> None:
        if self._at(path)[1] != version:
            raise StaleVersion(f"{path} has changed")


async def _performed(action: Any, files: dict[str, bytes], **more: bool) -> FakeStore:
    store = FakeStore(files, **more)
    await Acts(cast(StoreClient, store)).perform(action)
    return store


def _move(unlock: str = "", version: int = 5) -> MoveConfig:
    return MoveConfig(Sid("vm:100"), OLD, NEW, version, "n1 is fenced", unlock)


async def test_a_move_takes_the_file_and_nothing_else() -> None:
    store = await _performed(_move(), {OLD: b"cores: 2\nlock: backup\n"})
    assert store.files[NEW][0] == b"cores: 2\nlock: backup\n"


async def test_the_lock_of_a_fenced_holder_is_taken_off_first() -> None:
    store = await _performed(_move("backup"), {OLD: b"cores: 2\nlock: backup\n"})
    assert store.files == {NEW: (b"cores: 2\n", 6)}


async def test_another_lock_than_the_one_that_was_seen_stays() -> None:
    store = await _performed(_move("backup"), {OLD: b"lock: snapshot\n"})
    assert store.files == {NEW: (b"lock: snapshot\n", 5)}


async def test_what_has_changed_meanwhile_is_left_alone() -> None:
    for action in (_move(version=4), _move("backup", version=4), ForgetCommand("c", OLD, 4)):
        store = await _performed(action, {OLD: b"lock: backup\n"})
        assert store.files == {OLD: (b"lock: backup\n", 5)}
    assert (await _performed(_move(), {})).files == {}


async def test_a_fence_carries_what_was_seen_and_yields_to_a_renewal() -> None:
    fence = FenceLease(NodeName("n1"), NodeUid("u1"), 3, 9, "silent")
    assert (await _performed(fence, {})).fenced == [("u1", 3, 9)]
    assert (await _performed(fence, {}, has_renewed=True)).fenced == []


async def test_an_operators_stop_is_written_once_and_keeps_the_rest_of_the_file() -> None:
    text = b"# mine\nvm: 100\n\tstate started\n\tcomment web\n"
    store = await _performed(RequestStopped(Sid("vm:100")), {RESOURCES: text})
    assert store.files[RESOURCES] == (text.replace(b"started", b"stopped"), 6)
    for state in (b"stopped", b"disabled"):
        other = text.replace(b"started", state)
        assert (await _performed(RequestStopped(Sid("vm:100")), {RESOURCES: other})).files[RESOURCES] == (other, 5)
    assert (await _performed(RequestStopped(Sid("vm:101")), {RESOURCES: text})).files[RESOURCES] == (text, 5)


async def test_a_refused_act_keeps_no_other_guest_waiting() -> None:
    store = FakeStore({OLD: b"", "nodes/n1/lxc/101.conf": b""})
    move = store.move

    async def refuse_one(path: str, new_path: str, **options: Any) -> None:
        if path == OLD:
            raise Refused("this file stays where it is")
        await move(path, new_path, **options)

    store.move = refuse_one  # type: ignore[method-assign]
    other = "nodes/n2/lxc/101.conf"
    acts = [
        MoveConfig(Sid("vm:100"), OLD, NEW, 5, "free"),
        MoveConfig(Sid("ct:101"), "nodes/n1/lxc/101.conf", other, 5, "free"),
    ]
    with pytest.raises(Refused):
        await Acts(cast(StoreClient, store)).perform_all(acts)
    assert other in store.files


async def test_without_a_quorum_nothing_more_is_tried() -> None:
    store = FakeStore({OLD: b""})

    async def no_quorum(*_: Any, **__: Any) -> None:
        raise NoQuorum(missing=["n2"])

    store.fence_lease = no_quorum  # type: ignore[method-assign, assignment]
    acts = [
        FenceLease(NodeName("n1"), NodeUid("u1"), 1, 1, "silent"),
        MoveConfig(Sid("vm:100"), OLD, NEW, 5, "free"),
    ]
    with pytest.raises(NoQuorum):
        await Acts(cast(StoreClient, store)).perform_all(acts)
    assert OLD in store.files
