"""libvirtd.conf and qemu.conf of a Kvorum node, as text.

Written for the lab, and meant for a real node's packaging as well: facts about the host come in as values, text goes
out. libvirtd never listens on the network; nodes migrate guests through their agents and QEMU's own mutual TLS.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvorum.node import MIGRATION_PORTS, STATE, VNC_PORTS

QEMU_PKI = STATE / "pki" / "qemu"

Value = str | int | Sequence[str]


@dataclass(frozen=True, slots=True)
class Host:
    """What the files depend on. `address` is the node's on the cluster network; both must differ between nodes."""

    address: str
    host_uuid: str
    pki: Path = QEMU_PKI


def host_uuid(machine_id: str) -> str:
    """Migration is refused between hosts of one UUID, and firmware tables often carry none of their own."""
    return str(uuid.UUID(machine_id))


def render_libvirtd(host: Host) -> str:
    return _render(
        {
            "host_uuid": host.host_uuid,
            # No listen_tcp, no listen_tls: the unix socket is the only door, and root the only caller.
            "listen_tls": 0,
            "listen_tcp": 0,
            "unix_sock_group": "root",
            "unix_sock_rw_perms": "0700",
            "auth_unix_ro": "none",
            "auth_unix_rw": "none",
            "max_clients": 200,
            "max_workers": 20,
            "keepalive_interval": 2,
            "keepalive_count": 3,
            "log_outputs": "2:file:/var/log/libvirt/libvirtd.log",
        }
    )


def render_qemu(host: Host) -> str:
    """The agent owns disks, locks and limits, so libvirt's own handling of owners, cgroups and namespaces is off."""
    pki = str(host.pki)
    return _render(
        {
            "user": "root",
            "group": "root",
            "dynamic_ownership": 0,
            "remember_owner": 0,
            "security_driver": "none",
            "namespaces": [],
            "cgroup_controllers": [],
            # Without virtlogd: console logs are written by QEMU itself and survive the daemon.
            "stdio_handler": "file",
            "migration_address": host.address,
            "migration_host": host.address,
            "migration_port_min": MIGRATION_PORTS.start,
            "migration_port_max": MIGRATION_PORTS.stop - 1,
            "remote_display_port_min": VNC_PORTS.start,
            "remote_display_port_max": VNC_PORTS.stop - 1,
            "vnc_listen": host.address,
            "spice_listen": host.address,
            "keepalive_interval": 2,
            "keepalive_count": 3,
            "default_tls_x509_cert_dir": pki,
            "default_tls_x509_verify": 1,
            "migrate_tls_x509_cert_dir": pki,
            "migrate_tls_x509_verify": 1,
            "nbd_tls_x509_cert_dir": pki,
            "backup_tls_x509_cert_dir": pki,
            "backup_tls_x509_verify": 1,
        }
    )


def _render(settings: Mapping[str, Value]) -> str:
    return "".join(f"{key} = {_literal(value)}\n" for key, value in settings.items())


def _literal(value: Value) -> str:
    match value:
        case int():
            return str(value)
        case str():
            return f'"{value}"'
        case _:
            return "[ " + ", ".join(f'"{item}"' for item in value) + " ]" if value else "[ ]"
