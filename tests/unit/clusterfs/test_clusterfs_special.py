"""The exact text that pmxcfs' clients parse."""

import json

from clusterfs import clusterlog, special
from clusterfs.commands import Delete, Envelope, MemberPut, Move, Touch, Write
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


def test_version_counts_the_known_paths_in_their_order_and_the_status_keys() -> None:
    text = special.version(
        state_of("storage.cfg", "mapping/usb.cfg").root,
        start_time=5,
        members_version=6,
        guests_version=7,
        stores=[("n2", {"tasklist": 12, "kv/version-info": 3}), ("n1", {"tasklist": 4})],
    ).decode()
    paths = "".join(
        f'"{path}": {({"storage.cfg": 2, "mapping/usb.cfg": 3}).get(path, 0)},\n' for path in special.WATCHED_PATHS
    )
    assert len(special.WATCHED_PATHS) == 43
    assert text == (
        "{\n"
        '"starttime": 5,\n'
        '"clinfo": 6,\n'
        '"vmlist": 7,\n' + paths + '"kvstore": {\n'
        '"n2": {\n'
        '"kv/version-info": 3,\n'
        '"tasklist": 12}\n'
        ",\n"
        '"n1": {\n'
        '"tasklist": 4}\n'
        "}\n"
        "}\n"
    )
    assert paths.startswith('"corosync.conf": 0,\n"corosync.conf.new": 0,\n"storage.cfg": 2,\n"user.cfg": 0,\n')


def test_version_without_any_status_still_names_this_node() -> None:
    text = special.version(State().root, start_time=1, members_version=0, guests_version=0, stores=[("solo", {})])
    assert text.decode().endswith('"mapping/usb.cfg": 0,\n"kvstore": {\n"solo": {\n}\n}\n}\n')
    assert json.loads(text)["kvstore"] == {"solo": {}}


def test_a_counter_changes_with_each_change_of_its_path() -> None:
    seen = []
    state = State()
    for index, op in enumerate(
        (
            Write("ha/rules.cfg", b"1", parents=True),
            Write("ha/rules.cfg", b"2"),
            Touch("ha/rules.cfg", 5),
            Delete("ha/rules.cfg"),
            Write("ha/rules.cfg", b"2"),
            Move("ha", "hb"),
            Write("ha/rules.cfg", b"2", parents=True),
            Write("x", b"2"),
            Move("x", "ha/rules.cfg", replace=True),
        ),
        start=1,
    ):
        state, _result, _events = apply(state, Envelope(op), index)
        text = special.version(state.root, start_time=1, members_version=0, guests_version=0, stores=[])
        seen.append(json.loads(text)["ha/rules.cfg"])
    assert seen == [1, 2, 3, 0, 5, 0, 7, 7, 9]


def test_members_show_the_address_that_a_node_has_set() -> None:
    view = special.ClusterView("n1", "c", 1, 1, True, [Member(N1, "n1", "10.77.0.1", 1)], {}, {N1: "192.0.2.7"})
    assert '"n1": { "id": 1, "online": 0, "ip": "192.0.2.7"}\n' in special.members(view).decode()


def test_the_cluster_log_is_ascii_and_json() -> None:
    line = clusterlog.line(
        uid=1, time=1795327261, priority=6, tag="cluster", pid=14679, node="n3", user="root", message='say "ä"\n\x7f\\'
    )
    text = special.cluster_log([line, line])
    row = (
        '{"uid": 1, "time": 1795327261, "pri": 6, "tag": "cluster", "pid": 14679, "node": "n3", "user": "root", '
        '"msg": "say \\"\\u00e4\\"#010#127\\\\"}'
    )
    assert text.decode() == '{\n"data": [\n' + row + ",\n" + row + "\n]\n}\n"
    assert json.loads(text)["data"][0]["msg"] == 'say "ä"#010#127\\'
    assert special.cluster_log([]).decode() == '{\n"data": [\n]\n}\n'


def test_rrd_is_a_line_for_each_record() -> None:
    records = [("pve-node-9.0/n1", b"5:0:1795327261:U"), ("pve-vm-9.0/100", b"0:a:stopped:0:1795327261")]
    assert special.rrd(records) == (b"pve-node-9.0/n1:5:0:1795327261:U\npve-vm-9.0/100:0:a:stopped:0:1795327261\n")
    assert special.rrd([]) == b""


def test_links_point_to_this_nodes_directories() -> None:
    assert special.links("n1") == {
        "local": "nodes/n1",
        "qemu-server": "nodes/n1/qemu-server",
        "lxc": "nodes/n1/lxc",
        "openvz": "nodes/n1/openvz",
    }
