"""What the machine must have before a lab can run, checked at once so that the first error says all of it."""

import grp
import os
import pwd
import shutil
from collections.abc import Mapping

from kvorum.errors import PermissionDenied, Unsupported

# Program -> Debian package.
PROGRAMS: Mapping[str, str] = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "sysctl": "procps",
    "/usr/sbin/libvirtd": "libvirt-daemon",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "lxc-start": "lxc",
}
IMAGE_PROGRAMS: Mapping[str, str] = {
    "as": "binutils",
    "ld": "binutils",
    "lz4": "lz4",
    "/bin/busybox": "busybox-static",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
GROUPS = ("kvm", "libvirt-qemu", "www-data")


def check(programs: Mapping[str, str] = PROGRAMS) -> None:
    """Raises PermissionDenied when not root, Unsupported naming everything that is missing and the remedy."""
    if os.geteuid() != 0:
        raise PermissionDenied("a lab needs root: it makes namespaces and mounts", remedy="run it with sudo")
    missing = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    if missing:
        raise Unsupported(
            f"programs of these packages are missing: {', '.join(missing)}",
            remedy=f"run 'make dev', or: apt-get install -y --no-install-recommends {' '.join(missing)}",
        )
    present = {group.gr_name for group in grp.getgrall()}
    groups = [name for name in GROUPS if name not in present]
    if groups or "libvirt-qemu" not in {user.pw_name for user in pwd.getpwall()}:
        raise Unsupported(
            f"users or groups are missing: {', '.join(groups) or 'libvirt-qemu'}",
            remedy="run 'make dev', or: "
            + "; ".join(f"groupadd --system {name}" for name in groups)
            + ("; " if groups else "")
            + "useradd --system --no-create-home --gid kvm -G libvirt-qemu -d /var/lib/libvirt"
            " -s /usr/sbin/nologin libvirt-qemu",
        )
