"""The exact text that pmxcfs' clients parse."""

import json

from clusterfs import special
from clusterfs.commands import Envelope, MemberPut, Write
from clusterfs.membership import Member
from clusterfs.state import State, apply

N1 = "11111111-1111-4111-8111-111111111111"
N2 = "22222222-2222-4222-8222-222222222222"


def state_of(*paths: str) -> State:
    state, _result, _events = apply(State(), Envelope(MemberPut(N1, "n1", "10.77.0.1")), 1)
    for index, path in enumerate(paths, start=2):
        state, _result, _events = apply(state, Envelope(Write(path, b"x", parents=True)), index)
    return state


def test_members_of_a_cluster() -> None:
    view = special.ClusterView(
        node_name="n1",
        cluster_name="eval",
        version=7,
        config_version=1,
        is_quorate=True,
        members=[Member(N2, "n2", "10.77.0.2", 2), Member(N1, "n1", "10.77.0.1", 1)],
        online={N1: True},
    )
    assert special.members(view).decode() == (
        "{\n"
        '"nodename": "n1",\n'
        '"version": 7,\n'
        '"cluster": { "name": "eval", "version": 1, "nodes": 2, "quorate": 1 },\n'
        '"nodelist": {\n'
        '  "n1": { "id": 1, "online": 1, "ip": "10.77.0.1"},\n'
        '  "n2": { "id": 2, "online": 0, "ip": "10.77.0.2"}\n'
        "  }\n"
        "}\n"
    )


def test_members_before_anybody_is_known() -> None:
    view = special.ClusterView("solo", "", 0, 0, True, [], {})
    assert special.members(view).decode() == '{\n"nodename": "solo",\n"version": 0\n}\n'


def test_vmlist_with_guests_and_without() -> None:
    state = state_of("nodes/nb/lxc/101.conf", "nodes/na/qemu-server/99.conf")
    assert special.vmlist(state.root, guests_version=9).decode() == (
        "{\n"
        '"version": 9,\n'
        '"ids": {\n'
        '"99": { "node": "na", "type": "qemu", "version": 3 },\n'
        '"101": { "node": "nb", "type": "lxc", "version": 2 }}\n'
        "\n"
        "}\n"
    )
    assert special.vmlist(State().root, guests_version=0).decode() == '{\n"version": 0\n\n}\n'


def test_version_has_a_counter_for_each_known_path() -> None:
    text = special.version(
        state_of("storage.cfg").root, start_time=5, members_version=6, guests_version=7, nodes=["n1", "n2"]
    )
    parsed = json.loads(text)
    assert text.decode().startswith('{\n"starttime": 5,\n"clinfo": 6,\n"vmlist": 7,\n"corosync.conf": 0,\n')
    assert parsed["storage.cfg"] == 2
    assert parsed["kvstore"] == {"n1": {}, "n2": {}}


def test_the_cluster_log_shows_the_newest_first_and_stays_json() -> None:
    lines = [special.LogLine(n, 1795327261, 6, "cluster", 1, "n3", "root", f'say "{n}"\nä') for n in range(60)]
    data = json.loads(special.cluster_log(lines))["data"]
    assert len(data) == 50
    assert data[0]["msg"] == 'say "59"\nä'
    assert special.cluster_log([]).decode() == '{\n"data": [\n]\n}\n'


def test_links_point_to_this_nodes_directories() -> None:
    assert special.links("n1") == {"local": "nodes/n1", "qemu-server": "nodes/n1/qemu-server", "lxc": "nodes/n1/lxc"}
