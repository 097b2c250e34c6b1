"""The computed files of this node at this moment: what they are made of, and when they have to be made anew.

A mount asks for their size and content all the time, so each text is kept until something that it shows has changed. The
formats are `clusterfs.special`'s.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from clusterfs import clusterlog, formats, special
from clusterfs.gossip import RRD, Gossip
from clusterfs.machine import StoreMachine
from clusterfs.membership import Member

LOG_LINES = 50
RRD_MAX_AGE_S = 300.0
# Records get old without anything changing.
RRD_REFRESH_S = 2.0
# A status key of a node that wants to be reached at another address than its replica's.
NODE_IP = "nodeip"

_DEBUGGED = logging.getLogger("clusterfs")


class Cluster(Protocol):
    """What the running replica knows of its cluster."""

    @property
    def cluster_name(self) -> str: ...
    @property
    def members_counter(self) -> int: ...
    @property
    def is_quorate(self) -> bool: ...
    def members(self) -> list[Member]: ...
    def online(self) -> dict[str, bool]: ...


class Cached:
    """A text that is made anew when `key` has changed. Two threads may make the same one at once."""

    def __init__(self, key: Callable[[], object], make: Callable[[], bytes]) -> None:
        self._key = key
        self._make = make
        self._held: tuple[object, bytes] | None = None

    def __call__(self) -> bytes:
        # Before the text: what changes in between makes another key.
        key = self._key()
        held = self._held
        if held is None or held[0] != key:
            held = self._held = (key, self._make())
        return held[1]


class Computed:
    def __init__(self, *, node_name: str, machine: StoreMachine, gossip: Gossip, cluster: Cluster) -> None:
        self._node_name = node_name
        self._machine = machine
        self._gossip = gossip
        self._cluster = cluster
        self._start_time = int(time.time())

    def files(self) -> dict[str, Callable[[], bytes]]:
        return {
            ".version": Cached(self._version_key, self._version),
            ".members": Cached(self._members_key, self._members),
            ".vmlist": Cached(lambda: self._machine.view.guests_version, self._vmlist),
            ".clusterlog": Cached(lambda: self._gossip.log_version, self._cluster_log),
            ".rrd": Cached(lambda: (self._gossip.version, time.monotonic() // RRD_REFRESH_S), self._rrd),
            ".debug": lambda: b"1\n" if is_debugging() else b"0\n",
        }

    def addresses(self) -> Mapping[str, str]:
        """By uid, of the nodes that have set one."""
        found: dict[str, str] = {}
        for uid in self._gossip.shelves:
            value = self._gossip.get(uid, NODE_IP)
            if value is not None:
                found[uid] = value.rstrip(b"\0").decode(errors="replace")
        return found

    def _version_key(self) -> object:
        view = self._machine.view
        return view.index, view.guests_version, self._cluster.members_counter, self._gossip.version

    def _version(self) -> bytes:
        view = self._machine.view
        names = {member.uid: member.name for member in self._cluster.members()}
        me = self._gossip.uid
        others = sorted(uid for uid in self._gossip.shelves if uid != me and uid in names)
        stores = [(self._node_name, self._counters(me))]
        stores += sorted((names[uid], counters) for uid in others if (counters := self._counters(uid)))
        return special.version(
            view.state.root,
            start_time=self._start_time,
            members_version=self._cluster.members_counter,
            guests_version=view.guests_version,
            stores=stores,
        )

    def _counters(self, uid: str) -> dict[str, int]:
        """Of keys that are shown nowhere else, but for our own."""
        versions = self._gossip.versions(uid)
        own = (NODE_IP, formats.KEY)
        return {key: version for key, version in versions.items() if key not in own and not key.startswith(RRD)}

    def _members_key(self) -> object:
        view = self._machine.view
        cluster = self._cluster
        return view.members_version, cluster.members_counter, cluster.is_quorate, cluster.online(), self._gossip.version

    def _members(self) -> bytes:
        return special.members(
            special.ClusterView(
                node_name=self._node_name,
                cluster_name=self._cluster.cluster_name,
                version=self._cluster.members_counter,
                config_version=self._machine.state.members_version,
                is_quorate=self._cluster.is_quorate,
                members=self._cluster.members(),
                online=self._cluster.online(),
                addresses=self.addresses(),
            )
        )

    def _vmlist(self) -> bytes:
        view = self._machine.view
        return special.vmlist(view.state.root, guests_version=view.guests_version)

    def _cluster_log(self) -> bytes:
        return special.cluster_log(clusterlog.newest(self._gossip.rings, LOG_LINES))

    def _rrd(self) -> bytes:
        return special.rrd(self._gossip.newest(RRD, max_age_s=RRD_MAX_AGE_S))


def is_debugging() -> bool:
    return _DEBUGGED.level == logging.DEBUG


def set_debug(is_on: bool) -> None:
    _DEBUGGED.setLevel(logging.DEBUG if is_on else logging.NOTSET)
