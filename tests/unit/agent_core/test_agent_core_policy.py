"""The policy table: complete, and closed by default."""

import importlib
import inspect

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from agent.access.caller import LOCAL_ROOT, Caller, CallerKind, with_claims
from agent.access.policy import POLICY, check
from agent.services.store import is_private
from clusterfs import rules
from kvorum.errors import PermissionDenied

PROTOS = ("cluster", "store", "history", "lock", "settings", "status", "guest", "task", "ha", "migration")
FILES = [importlib.import_module(f"kvorum.v1.{name}_pb2").DESCRIPTOR for name in PROTOS]
FILES += [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
METHODS = {
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
}

ROOT = Caller(CallerKind.user, "root@pam")
ALICE = Caller(CallerKind.user, "alice@pve")
HA = Caller(CallerKind.ha, "ha", is_local=True)
NODE = Caller(CallerKind.node, "n2")
TOKEN = Caller(CallerKind.token, "abcdefgh")
ROOT_VIA_NODE = Caller(CallerKind.user, "root@pam", via="n2")
ALICE_VIA_NODE = Caller(CallerKind.user, "alice@pve", via="n2")


def allowed(caller: Caller) -> set[str]:
    result = set()
    for method in METHODS:
        try:
            check(caller, method)
        except PermissionDenied:
            continue
        result.add(method)
    return result


def named(methods: set[str]) -> set[str]:
    return {method.rpartition("/")[2] for method in methods if method.startswith("/kvorum.")}


def test_every_method_of_every_service_is_in_the_table_and_nothing_else() -> None:
    assert set(POLICY) == METHODS


def test_no_proto_is_forgotten_here() -> None:
    import kvorum.v1 as package

    modules = {
        path.name.removesuffix("_pb2.py") for path in __import__("pathlib").Path(package.__path__[0]).glob("*_pb2.py")
    }
    assert modules == {*PROTOS, "replica"}  # clusterfs alone serves the replica, on its own socket
    assert not inspect.getmembers(package, inspect.isclass)


def test_a_token_opens_two_methods_only() -> None:
    assert allowed(TOKEN) == {
        "/kvorum.v1.ClusterService/AdmitNode",
        "/kvorum.v1.ClusterService/GetClusterCertificate",
    }


def test_only_root_at_the_node_itself_founds_joins_and_leaves() -> None:
    local = {"BootstrapCluster", "JoinCluster", "LeaveCluster"}
    local |= {"PlanClusterRecovery", "RecoverCluster", "RejoinCluster", "ReaddressNode"}
    assert named(allowed(LOCAL_ROOT)) - named(allowed(ROOT)) == local
    for caller in (ROOT, HA, NODE, ROOT_VIA_NODE):
        assert not named(allowed(caller)) & local


def test_migration_is_between_nodes() -> None:
    migration = {method for method in METHODS if "MigrationService" in method}
    assert migration <= allowed(NODE)
    for caller in (ROOT, LOCAL_ROOT, HA, ALICE, TOKEN):
        assert not allowed(caller) & migration


def test_a_user_without_rights_gains_none_by_way_of_a_node() -> None:
    assert not named(allowed(ALICE))
    assert not named(allowed(ALICE_VIA_NODE)) - {
        "PrepareMigration",
        "TunnelMigration",
        "FinishMigration",
        "AbortMigration",
    }


def test_an_unknown_method_is_for_nobody() -> None:
    for caller in (LOCAL_ROOT, NODE, HA):
        with pytest.raises(PermissionDenied):
            check(caller, "/kvorum.v1.ClusterService/DropEverything")


def test_only_nodes_may_speak_for_others_and_only_local_processes_may_be_ha() -> None:
    assert with_claims(NODE, {"kvorum-on-behalf-of": "root@pam"}) == ROOT_VIA_NODE
    assert with_claims(NODE, {"kvorum-on-behalf-of": "ha"}) == Caller(CallerKind.ha, "ha", via="n2")
    assert with_claims(LOCAL_ROOT, {"kvorum-caller": "ha"}) == HA
    for caller in (ROOT, LOCAL_ROOT, TOKEN, ALICE):
        with pytest.raises(PermissionDenied):
            with_claims(caller, {"kvorum-on-behalf-of": "root@pam"})
    for caller in (ROOT, NODE, TOKEN):
        with pytest.raises(PermissionDenied):
            with_claims(caller, {"kvorum-caller": "ha"})
    for claim in ("root", "@pam", "root@", "r\noot@pam"):
        with pytest.raises(PermissionDenied):
            with_claims(NODE, {"kvorum-on-behalf-of": claim})
    with pytest.raises(PermissionDenied):
        with_claims(LOCAL_ROOT, {"kvorum-caller": "root"})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("priv", True),
        ("/priv/x", True),
        ("nodes/n1/priv/pve-ssl.key", True),
        ("nodes-archive/n1.3/priv/pve-ssl.key", True),
        ("nodes/n1/qemu-server/100.conf", False),
        ("nodes-archive/n1.3/lxc", False),
        ("x/y/priv", False),
    ],
)
def test_what_is_private_in_the_mount_is_private_over_the_network(path: str, expected: bool) -> None:
    assert is_private(path) is expected
    assert rules.is_private(tuple(path.strip("/").split("/"))) is expected
