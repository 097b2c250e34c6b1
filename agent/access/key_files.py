"""The node's certificates on disk: its key, its certificate, the CA's, and the directory that QEMU reads its own from.

Written once when the node forms or joins a cluster, removed when it leaves. The key is made here and never leaves.
"""

import os
from pathlib import Path

from kvorum.errors import ConfigError
from kvorum.node import Pki, write_atomically

QEMU_DIRECTORY = "qemu"


def install(pki: Pki, *, ca: bytes, certificate: bytes, key: bytes) -> None:
    """Write all PEM files, key 0600, and QEMU's links."""
    pki.directory.mkdir(parents=True, exist_ok=True)
    pki.directory.chmod(0o755)
    write_atomically(pki.key, key, mode=0o600)
    write_atomically(pki.certificate, certificate)
    write_atomically(pki.ca, ca)
    link_for_qemu(pki)


def link_for_qemu(pki: Pki) -> None:
    """QEMU and libvirt want fixed names in one directory (tls-creds-x509)."""
    directory = pki.directory / QEMU_DIRECTORY
    directory.mkdir(exist_ok=True)
    for name, target in _qemu_links(pki).items():
        fresh = directory / f".{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(target, directory))
        fresh.replace(directory / name)


def remove(pki: Pki) -> None:
    """Forget keys and certificates; what is gone already does not matter.

    The directories stay: libvirtd does not start without the one that its configuration names.
    """
    directory = pki.directory / QEMU_DIRECTORY
    for name in _qemu_links(pki):
        (directory / name).unlink(missing_ok=True)
    for path in (pki.key, pki.certificate, pki.ca):
        path.unlink(missing_ok=True)


def read(pki: Pki) -> tuple[bytes, bytes, bytes]:
    """CA, certificate and key. Raises ConfigError when one is missing or unreadable."""
    try:
        return pki.ca.read_bytes(), pki.certificate.read_bytes(), pki.key.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read this node's certificates: {error}",
            path=str(error.filename or pki.directory),
            remedy="restore them, or remove the node from the cluster and join anew",
        ) from error


def _qemu_links(pki: Pki) -> dict[str, Path]:
    return {
        "ca-cert.pem": pki.ca,
        "server-cert.pem": pki.certificate,
        "server-key.pem": pki.key,
        "client-cert.pem": pki.certificate,
        "client-key.pem": pki.key,
    }
