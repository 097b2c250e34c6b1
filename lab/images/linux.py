"""Builds the Linux guest: Debian's cloud kernel and a first file system of busybox alone.

The kernel's package is only unpacked, never installed. The plain ELF kernel is taken out of the compressed image: it
boots by PVH without unpacking itself, which saves seconds where there is no hardware acceleration. What the guest does
is in linux-init.sh. 96 MiB of RAM is the least.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvorum.errors import CommandFailed, KvorumError, NotFound
from lab import programs
from lab.images import cache
from lab.images.newc import Archive

COMMAND_LINE = "console=ttyS0 quiet no_timer_check tsc=reliable mitigations=off nokaslr 8250.nr_uarts=1 panic=-1"

_META_PACKAGE = "linux-image-cloud-amd64"
_BUSYBOX = Path("/bin/busybox")
_INIT = cache.SOURCES / "linux-init.sh"
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_scsi", "sd_mod", "virtio_balloon", "button", "evdev")
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_DOWNLOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """`kernel` is an ELF file for PVH boot (`-kernel`), `initrd` an archive as it is."""

    kernel: Path
    initrd: Path


def build() -> LinuxImage:
    """Raises CommandFailed when the kernel's package can be had neither from the cache nor from apt."""
    kernel = cache.built(cache.place("kernel", cache.key([], "vmlinux and modules", *_MODULES)), _fetch_kernel)
    sources = [_INIT, Path(__file__), _BUSYBOX, kernel / "modules.list"]
    initrd = cache.built(cache.place("initrd", cache.key(sources)), lambda directory: _write_initrd(kernel, directory))
    return LinuxImage(kernel=kernel / "vmlinux", initrd=initrd / "initrd.cpio")


def module_order(wanted: Iterator[str] | tuple[str, ...], depends: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Each module after what it depends on. One that is not in `depends` is built into the kernel: left out."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order or name not in depends:
            return
        for other in depends[name]:
            visit(other)
        order.append(name)

    for name in wanted:
        visit(name)
    return order


def parse_depends(module: bytes) -> tuple[str, ...]:
    """What a .ko file says in its .modinfo section; names with underscores."""
    match = re.search(rb"\0depends=([^\0]*)", module)
    names = match[1].decode().replace("-", "_").split(",") if match else []
    return tuple(name for name in names if name)


def compressed_kernel(bzimage: bytes) -> bytes:
    """The payload of a bzImage, by its setup header (the kernel's x86 boot protocol). Raises CommandFailed."""
    setup_sectors = bzimage[0x1F1]
    offset = int.from_bytes(bzimage[0x248:0x24C], "little")
    length = int.from_bytes(bzimage[0x24C:0x250], "little")
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length - 4]  # the last four bytes tell the unpacked size
    if not payload.startswith(_LZ4_LEGACY):
        raise CommandFailed(
            "the kernel is not compressed with lz4", remedy="teach lab/images/linux.py the other format"
        )
    return payload


def _fetch_kernel(directory: Path) -> None:
    try:
        _download(directory)
    except KvorumError:  # no package lists yet, or older ones than the mirror's packages
        programs.run(["apt-get", "-o", "DPkg::Lock::Timeout=300", "-q", "update"], timeout_s=_DOWNLOAD_TIMEOUT_S)
        _download(directory)
    tree = directory / "tree"
    programs.run(["dpkg-deb", "-x", str(next(directory.glob("*.deb"))), str(tree)], timeout_s=_DOWNLOAD_TIMEOUT_S)
    payload = directory / "payload.lz4"
    payload.write_bytes(compressed_kernel(next(tree.glob("boot/vmlinuz-*")).read_bytes()))
    programs.run(["lz4", "-d", "-f", "-q", str(payload), str(directory / "vmlinux")])
    _keep_modules(tree, directory)
    payload.unlink()
    shutil.rmtree(tree)
    for package_file in directory.glob("*.deb"):
        package_file.unlink()


def _download(directory: Path) -> None:
    package = _package_name(programs.run(["apt-cache", "depends", _META_PACKAGE]))
    command = ["apt-get", "-o", f"Dir::Cache::archives={directory}", "-q", "download", package]
    programs.run(command, timeout_s=_DOWNLOAD_TIMEOUT_S, directory=directory)


def _package_name(depends: str) -> str:
    match = re.search(r"Depends: (linux-image-\S+)", depends)
    if match is None:
        raise NotFound(f"apt knows no package {_META_PACKAGE}", remedy="run 'apt-get update'")
    return match[1]


def _keep_modules(tree: Path, directory: Path) -> None:
    found = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    depends = {name: parse_depends(path.read_bytes()) for name, path in found.items()}
    order = module_order(_MODULES, depends)
    (directory / "modules").mkdir()
    for name in order:
        shutil.copyfile(found[name], directory / "modules" / f"{name}.ko")
    (directory / "modules.list").write_text("\n".join(order) + "\n")


def _write_initrd(kernel: Path, directory: Path) -> None:
    archive = Archive()
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3, mode=0o666)
    archive.file("bin/busybox", _BUSYBOX.read_bytes(), mode=0o755)
    for applet in programs.run([str(_BUSYBOX), "--list"]).split():
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    order = (kernel / "modules.list").read_text()
    for name in order.split():
        archive.file(f"lib/{name}.ko", (kernel / "modules" / f"{name}.ko").read_bytes())
    archive.file("modules.order", order.encode())
    archive.file("init", _INIT.read_bytes(), mode=0o755)
    # Not compressed: emulated processors take longer to unpack it than QEMU to load it.
    (directory / "initrd.cpio").write_bytes(archive.finish())
