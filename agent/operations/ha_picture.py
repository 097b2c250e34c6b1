"""What this node can tell about HA: the files of the store that HA goes by, the leases, and what the nodes' keepers say.

The same view on which the manager decides, read by the same code, so that what is foretold here is what the manager would do. It
is read anew for each question; nothing is kept but what files say. Nothing is decided or changed.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ha.balance import History
from ha.black_box import STATUS_KEY, Shown
from ha.lease_state import boottime
from ha.loads import Loads
from ha.mirror import Mirror
from ha.rules import RULES_CFG, parse_rules
from ha.settings import SETTINGS_CFG, Settings, parse_settings
from ha.view import View
from ha.world import Absences, Parsed, Reading, manager_view, read_store
from kvorum.errors import ConfigError, KvorumError, NotFound, Refused
from kvorum.ids import NodeName, parse_node_name
from kvorum.node import Identity

if TYPE_CHECKING:
    from clusterfs.client import StoreClient
    from kvorum.v1 import replica_pb2


@dataclass(frozen=True, slots=True)
class Picture:
    view: View
    reading: Reading
    # By node; of those that have said something.
    keepers: Mapping[str, Shown]

    @property
    def is_quorate(self) -> bool:
        return self.reading.leases.quorate

    def settings(self) -> Settings:
        """Raises ConfigError."""
        return parse_settings(self.reading.content(SETTINGS_CFG).decode(errors="replace"))

    def node(self, text: str, *, field: str = "node") -> NodeName:
        """A member by its name, or by `nodes/{node}`. Raises NotFound, InvalidInput."""
        name = parse_node_name(text.removeprefix("nodes/"), field=field)
        if name not in self.view.nodes:
            raise NotFound(
                f"there is no node {name} on which guests run",
                remedy=f"the nodes are {', '.join(sorted(self.view.nodes))}",
            )
        return name

    def keeps_quorum_without(self, nodes: frozenset[NodeName]) -> bool:
        return keeps_quorum(self.reading.replica, nodes)


class Painter:
    """One per agent; remembers what files say, so that a broken one is complained about once."""

    def __init__(self, store: "StoreClient") -> None:
        self._store = store
        self._life = ("", 0)
        self._round = 0
        self._loads = Loads(store)
        self._begin()

    async def paint(self, identity: Identity) -> Picture:
        """Raises ConfigError when the manager's status is damaged, Refused while the replica catches up."""
        mirror = Mirror(self._store, _nothing)
        # What was parsed is kept by this count, so no two questions may have the same.
        self._round += 1
        mirror.revision = 2 * self._round
        await mirror.load()
        uid, index = self._life
        if identity.uid != uid or mirror.index < index:
            self._begin()
        self._life = (identity.uid, mirror.index)
        reading = await read_store(self._store, mirror)
        if not reading.replica.ready:
            raise Refused("this node's replica has not caught up yet", remedy="try again in a moment")
        await self._loads.refresh(boottime())
        view = manager_view(reading, identity, self._parsed, self._absences, now=boottime())
        view = self._loads.added_to(view, History())
        return Picture(view, reading, await self._keepers())

    def _begin(self) -> None:
        """Another cluster, or one that was recovered to an earlier state, counts its changes anew."""
        self._parsed = Parsed()
        self._absences = Absences()

    async def _keepers(self) -> Mapping[str, Shown]:
        try:
            answer = await self._store.list_status(prefix=STATUS_KEY, with_values=True)
        except KvorumError:
            return {}  # a lease says more than its keeper
        found: dict[str, Shown] = {}
        for node in answer.nodes:
            for value in node.values:
                if value.key == STATUS_KEY and (shown := _shown(value.value)) is not None:
                    found[node.node] = shown
        return found


def keeps_quorum(replica: "replica_pb2.GetReplicaStatusResponse", dead: frozenset[NodeName]) -> bool:
    """Whether a majority of the voters is connected without these."""
    voters = [member for member in replica.members if member.voter]
    alive = [member for member in voters if member.connected and member.name not in dead]
    return len(alive) > len(voters) // 2


def problems_of(picture: Picture) -> list[str]:
    """What is wrong with the files of HA, in sentences."""
    found = [str(conflict) for conflict in picture.view.rules.conflicts]
    with suppress(ConfigError):
        found += [f"{RULES_CFG}: {one}" for one in parse_rules(picture.reading.content(RULES_CFG)).problems]
    found += picture.view.options.problems
    if picture.view.resources is None:
        found.append("ha/resources.cfg cannot be read: nothing changes until it is mended")
    try:
        picture.settings()
    except ConfigError as error:
        found.append(f"ha/settings.cfg: {error}" + (f" ({error.remedy})" if error.remedy else ""))
    return found


def _shown(value: bytes) -> Shown | None:
    """None for what a node of another version says otherwise."""
    try:
        return msgspec.json.decode(value, type=Shown)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _nothing() -> None:
    """A picture is not told of changes."""
