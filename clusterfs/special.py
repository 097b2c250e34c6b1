"""The computed files at the top of the mount, in pmxcfs' formats, which scripts and Proxmox VE's tools parse.

Pure: values in, text out. Counters are this daemon's own; a client compares (starttime, counter) with what it saw before.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clusterfs import rules
from clusterfs.clusterlog import LogLine
from clusterfs.membership import Member
from clusterfs.tree import Directory, File, lookup

# The paths whose counters `.version` lists, as clients of pmxcfs know them.
WATCHED_PATHS = (
    "corosync.conf",
    "corosync.conf.new",
    "storage.cfg",
    "user.cfg",
    "domains.cfg",
    "notifications.cfg",
    "priv/notifications.cfg",
    "priv/shadow.cfg",
    "priv/acme/plugins.cfg",
    "priv/tfa.cfg",
    "priv/token.cfg",
    "priv/wg-keys.cfg",
    "datacenter.cfg",
    "vzdump.cron",
    "vzdump.conf",
    "jobs.cfg",
    "ha/crm_commands",
    "ha/manager_status",
    "ha/resources.cfg",
    "ha/rules.cfg",
    "ha/groups.cfg",
    "ha/fence.cfg",
    "status.cfg",
    "replication.cfg",
    "ceph.conf",
    "sdn/vnets.cfg",
    "sdn/zones.cfg",
    "sdn/controllers.cfg",
    "sdn/subnets.cfg",
    "sdn/ipams.cfg",
    "sdn/mac-cache.json",
    "sdn/pve-ipam-state.json",
    "sdn/dns.cfg",
    "sdn/fabrics.cfg",
    "sdn/route-maps.cfg",
    "sdn/prefix-lists.cfg",
    "sdn/.running-config",
    "virtual-guest/cpu-models.conf",
    "virtual-guest/profiles.cfg",
    "firewall/cluster.fw",
    "mapping/directory.cfg",
    "mapping/pci.cfg",
    "mapping/usb.cfg",
)


_WATCHED = tuple((tuple(path.split("/")), json.dumps(path)) for path in WATCHED_PATHS)


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What `.members` shows; `version` counts changes of it, `config_version` changes of the list of members."""

    node_name: str
    cluster_name: str
    version: int
    config_version: int
    is_quorate: bool
    members: Sequence[Member]
    online: Mapping[str, bool]
    # By uid, of nodes that have said that they are to be reached elsewhere than where their replica listens.
    addresses: Mapping[str, str] = field(default_factory=dict)


def version(
    root: Directory,
    *,
    start_time: int,
    members_version: int,
    guests_version: int,
    stores: Sequence[tuple[str, Mapping[str, int]]],
) -> bytes:
    """`.version`: what changed, by counters. A path's counter is the log index of its last change, 0 when it is not there.

    `stores`: the status keys of each node with their counters; this node comes first.
    """
    lines = [
        f'"starttime": {start_time}',
        f'"clinfo": {members_version}',
        f'"vmlist": {guests_version}',
    ]
    for parts, shown in _WATCHED:
        node = lookup(root, parts)
        lines.append(f"{shown}: {node.version if node is not None else 0}")
    nodes = ",\n".join(_store(name, counters) for name, counters in stores)
    lines.append('"kvstore": {\n' + nodes + "}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def members(view: ClusterView) -> bytes:
    """`.members`: the nodes, who of them is online, and whether there is quorum."""
    head = f'{{\n"nodename": {json.dumps(view.node_name)},\n"version": {view.version}'
    if not view.members:
        return (head + "\n}\n").encode()
    cluster = (
        f'"cluster": {{ "name": {json.dumps(view.cluster_name)}, "version": {view.config_version}, '
        f'"nodes": {len(view.members)}, "quorate": {int(view.is_quorate)} }}'
    )
    nodes = ",\n".join(
        f'  {json.dumps(member.name)}: {{ "id": {member.number}, "online": {int(view.online.get(member.uid, False))}, '
        f'"ip": {json.dumps(view.addresses.get(member.uid, member.address))}}}'
        for member in sorted(view.members, key=lambda member: member.number)
    )
    return f'{head},\n{cluster},\n"nodelist": {{\n{nodes}\n  }}\n}}\n'.encode()


def vmlist(root: Directory, *, guests_version: int) -> bytes:
    """`.vmlist`: every guest with its node and type; a guest's version is the log index at which it came to its place."""
    head = f'{{\n"version": {guests_version}'
    found = rules.guests(root)
    if not found:
        return (head + "\n\n}\n").encode()
    lines = ",\n".join(_vm(place, file) for place, file in found)
    return f'{head},\n"ids": {{\n{lines}}}\n\n}}\n'.encode()


def cluster_log(lines: Sequence[LogLine]) -> bytes:
    """`.clusterlog`, of lines that come newest first."""
    rows = ",\n".join(
        f'{{"uid": {line.uid}, "time": {line.time}, "pri": {line.priority}, "tag": {json.dumps(line.tag)}, '
        f'"pid": {line.pid}, "node": {json.dumps(line.node)}, "user": {json.dumps(line.user)}, '
        f'"msg": {json.dumps(line.message)}}}'
        for line in lines
    )
    return ('{\n"data": [\n' + (rows + "\n" if rows else "") + "]\n}\n").encode()


def rrd(records: Sequence[tuple[str, bytes]]) -> bytes:
    """`.rrd`: one line for each record that nodes have told of lately."""
    return b"".join(b"%s:%s\n" % (key.encode(), record) for key, record in records)


def links(node_name: str) -> dict[str, str]:
    """The links at the top, by name, with their targets; they exist even when the target does not."""
    home = f"nodes/{node_name}"
    return {name: home if name == "local" else f"{home}/{name}" for name in rules.LINKS}


def _store(name: str, counters: Mapping[str, int]) -> str:
    rows = ",\n".join(f"{json.dumps(key)}: {counters[key]}" for key in sorted(counters))
    return f"{json.dumps(name)}: {{\n{rows}}}\n"


def _vm(place: rules.GuestPlace, file: File) -> str:
    kind = rules.GUEST_TYPES[place.directory]
    return f'"{place.vmid}": {{ "node": {json.dumps(place.node)}, "type": "{kind}", "version": {file.placement} }}'
