"""Which kinds of callers may call which method. One table; what is not in it nobody may call.

Privileges on paths come later and narrow this further: today every user is root@pam. Whether a token or a certificate is
still valid is checked before (`agent.access.proof`).
"""

from enum import StrEnum

from kvorum.errors import PermissionDenied

from .caller import Caller, CallerKind


class Grant(StrEnum):
    root = "root"  # root@pam and HA, locally or remotely
    local_root = "local root"  # root on this node's own socket
    node = "node"  # agents of members
    token = "token"  # noqa: S105 - who holds an unredeemed join token
    anyone = "anyone"  # whoever got through the handshake, but tokens


ROOT = frozenset({Grant.root})
ROOT_AND_NODES = frozenset({Grant.root, Grant.node})
NODES = frozenset({Grant.node})
LOCAL_ROOT = frozenset({Grant.local_root})
TOKEN = frozenset({Grant.token})
ANYONE = frozenset({Grant.anyone})
NOBODY: frozenset[Grant] = frozenset()

POLICY: dict[str, frozenset[Grant]] = {
    "/kvorum.v1.ClusterService/BootstrapCluster": LOCAL_ROOT,
    "/kvorum.v1.ClusterService/CreateJoinToken": ROOT,
    "/kvorum.v1.ClusterService/JoinCluster": LOCAL_ROOT,
    "/kvorum.v1.ClusterService/AdmitNode": TOKEN,
    "/kvorum.v1.ClusterService/LeaveCluster": LOCAL_ROOT,
    # A leaving node asks another member to take it out.
    "/kvorum.v1.ClusterService/RemoveNode": ROOT_AND_NODES,
    "/kvorum.v1.ClusterService/RenameNode": ROOT,
    # The agent that is asked passes it on to the node that moves.
    "/kvorum.v1.ClusterService/SetNodeAddress": ROOT,
    "/kvorum.v1.ClusterService/ReaddressNode": LOCAL_ROOT,
    "/kvorum.v1.ClusterService/PlanClusterRecovery": LOCAL_ROOT,
    "/kvorum.v1.ClusterService/RecoverCluster": LOCAL_ROOT,
    "/kvorum.v1.ClusterService/RejoinCluster": LOCAL_ROOT,
    "/kvorum.v1.ClusterService/GetClusterStatus": ROOT_AND_NODES,
    "/kvorum.v1.ClusterService/ListNodes": ROOT_AND_NODES,
    "/kvorum.v1.ClusterService/GetClusterCertificate": TOKEN | ROOT_AND_NODES,
    "/kvorum.v1.ClusterService/IssueClientCertificate": ROOT,
    "/kvorum.v1.StoreService/GetEntry": ROOT_AND_NODES,
    "/kvorum.v1.StoreService/ListEntries": ROOT_AND_NODES,
    "/kvorum.v1.StoreService/WriteEntry": ROOT_AND_NODES,
    "/kvorum.v1.StoreService/MoveEntry": ROOT_AND_NODES,
    "/kvorum.v1.StoreService/DeleteEntry": ROOT_AND_NODES,
    "/kvorum.v1.StoreService/WatchEntries": ROOT_AND_NODES,
    "/kvorum.v1.HistoryService/ListChanges": ROOT_AND_NODES,
    "/kvorum.v1.HistoryService/GetVersion": ROOT_AND_NODES,
    "/kvorum.v1.HistoryService/BlameEntry": ROOT_AND_NODES,
    "/kvorum.v1.HistoryService/RestoreEntry": ROOT_AND_NODES,
    "/kvorum.v1.HistoryService/ForgetVersions": ROOT,
    "/kvorum.v1.LockService/AcquireLock": ROOT_AND_NODES,
    "/kvorum.v1.LockService/RenewSession": ROOT_AND_NODES,
    "/kvorum.v1.LockService/ReleaseLock": ROOT_AND_NODES,
    "/kvorum.v1.LockService/EndSession": ROOT_AND_NODES,
    "/kvorum.v1.LockService/BreakLock": ROOT,
    "/kvorum.v1.LockService/ListLocks": ROOT_AND_NODES,
    "/kvorum.v1.SettingsService/GetSettings": ROOT_AND_NODES,
    "/kvorum.v1.SettingsService/UpdateSettings": ROOT,
    # A node's status and the lines in its name are its own, and clusterfs takes them on its own socket.
    "/kvorum.v1.StatusService/SetStatus": NOBODY,
    "/kvorum.v1.StatusService/LogMessage": NOBODY,
    "/kvorum.v1.StatusService/GetStatus": ROOT_AND_NODES,
    "/kvorum.v1.StatusService/ListStatus": ROOT_AND_NODES,
    "/kvorum.v1.StatusService/WatchStatus": ROOT_AND_NODES,
    "/kvorum.v1.StatusService/ListLog": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/GetGuest": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/ListGuests": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/CreateGuest": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/UpdateGuest": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/DeleteGuest": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/StartGuest": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/ShutdownGuest": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/StopGuest": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/MigrateGuest": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/GetGuestConsoleLog": ROOT_AND_NODES,
    "/kvorum.v1.GuestService/GetNextGuestId": ROOT_AND_NODES,
    "/kvorum.v1.TaskService/GetTask": ROOT_AND_NODES,
    "/kvorum.v1.TaskService/ListTasks": ROOT_AND_NODES,
    "/kvorum.v1.TaskService/StreamTaskLog": ROOT_AND_NODES,
    "/kvorum.v1.TaskService/WaitTask": ROOT_AND_NODES,
    "/kvorum.v1.TaskService/CancelTask": ROOT_AND_NODES,
    "/kvorum.v1.HaService/ListHaResources": ROOT_AND_NODES,
    "/kvorum.v1.HaService/AddHaResource": ROOT_AND_NODES,
    "/kvorum.v1.HaService/UpdateHaResource": ROOT_AND_NODES,
    "/kvorum.v1.HaService/RemoveHaResource": ROOT_AND_NODES,
    "/kvorum.v1.HaService/GetHaStatus": ROOT_AND_NODES,
    # What moves guests or makes HA look away is a person's wish; no agent has any of its own.
    "/kvorum.v1.HaService/MigrateHaResource": ROOT,
    "/kvorum.v1.HaService/RelocateHaResource": ROOT,
    "/kvorum.v1.HaService/StopHaResource": ROOT,
    "/kvorum.v1.HaService/SetHaMaintenance": ROOT,
    "/kvorum.v1.HaService/DisarmHa": ROOT,
    "/kvorum.v1.HaService/ArmHa": ROOT,
    "/kvorum.v1.HaService/GetHaCommand": ROOT_AND_NODES,
    "/kvorum.v1.HaService/ListHaRules": ROOT_AND_NODES,
    "/kvorum.v1.HaService/AddHaRule": ROOT,
    "/kvorum.v1.HaService/ReplaceHaRule": ROOT,
    "/kvorum.v1.HaService/RemoveHaRule": ROOT,
    "/kvorum.v1.HaService/ListHaProfiles": ROOT_AND_NODES,
    "/kvorum.v1.HaService/SetHaProfile": ROOT,
    "/kvorum.v1.HaService/SimulateHa": ROOT_AND_NODES,
    "/kvorum.v1.HaService/PlanHaMaintenance": ROOT_AND_NODES,
    "/kvorum.v1.HaService/ExplainHaResource": ROOT_AND_NODES,
    "/kvorum.v1.HaService/ListHaRecords": ROOT_AND_NODES,
    "/kvorum.v1.MigrationService/PrepareMigration": NODES,
    "/kvorum.v1.MigrationService/TunnelMigration": NODES,
    "/kvorum.v1.MigrationService/FinishMigration": NODES,
    "/kvorum.v1.MigrationService/AbortMigration": NODES,
    "/grpc.health.v1.Health/Check": ANYONE,
    "/grpc.health.v1.Health/Watch": ANYONE,
    "/grpc.health.v1.Health/List": ANYONE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ANYONE,
}


def grants_of(caller: Caller) -> frozenset[Grant]:
    """What this caller counts as. A user that is not root@pam counts as nothing yet but `anyone`."""
    grants: set[Grant] = set()
    if caller.kind is CallerKind.token:
        return frozenset({Grant.token})
    grants.add(Grant.anyone)
    if caller.is_node:
        grants.add(Grant.node)
    if caller.is_root:
        grants.add(Grant.root)
        if caller.is_local and caller.kind is CallerKind.user:
            grants.add(Grant.local_root)
    return frozenset(grants)


def check(caller: Caller, method: str) -> None:
    """Raise PermissionDenied unless the caller may call `/package.Service/Method`.

    A node that forwards a call for a user is allowed what that user is allowed, and what nodes have to themselves.
    """
    allowed = POLICY.get(method, frozenset())
    grants = grants_of(caller)
    if caller.via and Grant.root in allowed:
        grants -= {Grant.node}  # forwarding must not lend the node's rights to the user it forwards for
    if not allowed & grants:
        remedy = "run it on that node itself, as root" if allowed == LOCAL_ROOT and caller.is_root else ""
        raise PermissionDenied(f"{caller.author} may not call {method.rpartition('.')[2]}", remedy=remedy)
