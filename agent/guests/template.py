"""A container's root file system: unpacked from a template, and told its name.

Templates and the trees made of them are not trusted: names in an archive may point out of the directory, and a link inside of
the tree may point at the host's files. So the archive is unpacked by GNU tar, which leaves nothing outside of its directory
(it strips `/` and `..`, and makes links last), and files are written through directory handles that follow no link.
"""

import asyncio
import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agent.guests.lxc_config import IdMap, hostname, is_unprivileged, nameservers
from agent.guests.lxc_network import interfaces
from agent.processes import run
from agent.storage.images import make_filesystem
from kvorum.config.guest import GuestConfig
from kvorum.errors import CommandFailed, NotFound, Refused
from kvorum.ids import Vmid

UNPACK_TIMEOUT_S = 600.0

# By the first bytes: the name of a file is only a name.
_COMPRESSIONS: Sequence[tuple[bytes, str]] = (
    (b"\x1f\x8b", "--gzip"),
    (b"\xfd7zXZ\x00", "--xz"),
    (b"\x28\xb5\x2f\xfd", "--zstd"),
    (b"BZh", "--bzip2"),
)
_DEBIAN_LIKE = frozenset(("debian", "devuan", "ubuntu"))
_LINKS_MAX = 40


async def unpack_template(
    tarball: Path, root: Path, *, vmid: Vmid, config: GuestConfig, id_map: IdMap | None = None
) -> None:
    """Fill the container's root volume, an empty directory or a raw image, and write the container's name into it.

    With `unprivileged: 1` in the config the files get the owners that `id_map` gives them. When something goes wrong, a
    directory is empty afterwards and an image holds no file system. Raises NotFound (no such template), Refused (`root` is
    not empty), CommandFailed (no archive, disk full).
    """
    if await asyncio.to_thread(root.is_file):
        await _fill_image(tarball, root, vmid=vmid, config=config, id_map=id_map)
        return
    ids = (id_map or IdMap()) if is_unprivileged(config) else None
    await asyncio.to_thread(_require_empty, root)
    try:
        await _extract(tarball, root, ids)
        await asyncio.to_thread(personalise, root, vmid, config, owner=ids.first if ids else 0)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(_clear, root))
        raise


async def _fill_image(tarball: Path, image: Path, *, vmid: Vmid, config: GuestConfig, id_map: IdMap | None) -> None:
    """By way of a directory beside it, so that an untrusted file system is never mounted on the host."""
    staging = await asyncio.to_thread(tempfile.mkdtemp, prefix=f".unpack-{image.name}-", dir=image.parent)
    try:
        tree = Path(staging, "root")
        await asyncio.to_thread(tree.mkdir)
        # The user that unpacks for an unprivileged container must get through.
        await asyncio.to_thread(tree.parent.chmod, 0o711)
        await unpack_template(tarball, tree, vmid=vmid, config=config, id_map=id_map)
        await make_filesystem(image, content=tree, owner=(await asyncio.to_thread(tree.stat)).st_uid)
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True))


def personalise(root: Path, vmid: Vmid, config: GuestConfig, *, owner: int = 0) -> None:
    """Write the container's name, resolvers and (for Debian and its like) interfaces into its /etc."""
    name = hostname(vmid, config)
    files = {"hostname": f"{name.partition('.')[0]}\n", "hosts": _hosts(name, vmid, config)}
    if servers := nameservers(config):
        search = config.get("searchdomain", "")
        lines = [*([f"search {search}"] if search else []), *(f"nameserver {server}" for server in servers)]
        files["resolv.conf"] = "\n".join(lines) + "\n"
    if config.get("ostype") in _DEBIAN_LIKE:
        files["network/interfaces"] = _debian_interfaces(vmid, config)
    for path, content in files.items():
        _write_inside(root, f"etc/{path}", content, owner=owner)


def init_program(root: Path) -> str:
    """Where /sbin/init leads to inside of `root`, as a path without the first slash; empty when there is none."""
    path, left = [""], ["sbin", "init"]
    for _ in range(_LINKS_MAX):
        if not left:
            return "/".join(path[1:])
        part = left.pop(0)
        if part in {"", "."}:
            continue
        if part == "..":
            path = path[:-1] or [""]
            continue
        here = root.joinpath(*path[1:], part)
        try:
            mode = here.lstat().st_mode
            target = str(here.readlink()) if stat.S_ISLNK(mode) else None
        except OSError:
            return ""
        if target is None:
            path.append(part)
            continue
        if target.startswith("/"):
            path = [""]
        left = [*target.split("/"), *left]
    return ""


async def _extract(tarball: Path, root: Path, ids: IdMap | None) -> None:
    try:
        # Opened here and handed over, because the user that unpacks for an unprivileged container may not open it.
        archive = await asyncio.to_thread(tarball.open, "rb", buffering=0)
    except FileNotFoundError:
        raise NotFound(
            f"there is no template {tarball.name}", remedy="see what the storage has, or put it there"
        ) from None
    with archive:
        magic = archive.read(6)
        archive.seek(0)
        command = ["tar", "--extract", "--file", "-", "--directory", str(root), "--numeric-owner", "--same-owner"]
        command += ["--same-permissions", "--anchored", "--exclude", "./dev/*", "--exclude", "dev/*"]
        command += [option for start, option in _COMPRESSIONS if magic.startswith(start)]
        if ids is not None:
            await asyncio.to_thread(os.chown, root, ids.first, ids.first)
            command = ["lxc-usernsexec", "-m", f"b:0:{ids.first}:{ids.count}", "--", *command]
        try:
            await run(command, timeout_s=UNPACK_TIMEOUT_S, input=archive)
        except CommandFailed as error:
            # tar says first what went wrong, and last that it gives up.
            said = error.details.get("stderr", "").partition("\n")[0] or error.message
            raise CommandFailed(
                f"cannot unpack {tarball.name}: {said}",
                remedy="check the archive with 'tar -tf', and the free space",
                details=error.details,
            ) from error


def _require_empty(root: Path) -> None:
    try:
        entries = [entry.name for entry in root.iterdir() if entry.name != "lost+found"]
    except FileNotFoundError:
        raise NotFound(f"there is no volume at {root}", remedy="allocate it first") from None
    if entries:
        raise Refused(f"{root} is not empty", remedy="unpack into a new volume")


def _clear(root: Path) -> None:
    for entry in root.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    os.chown(root, 0, 0)


def _hosts(name: str, vmid: Vmid, config: GuestConfig) -> str:
    short = name.partition(".")[0]
    names = name if short == name else f"{name} {short}"
    fixed = [interface.ipv4.partition("/")[0] for interface in interfaces(vmid, config) if interface.ipv4]
    own = fixed[0] if fixed else "127.0.1.1"
    return f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{names}\n"


def _debian_interfaces(vmid: Vmid, config: GuestConfig) -> str:
    """Fixed addresses are set by liblxc before the first process runs; ifupdown only must not undo that."""
    lines = ["auto lo", "iface lo inet loopback"]
    for interface in interfaces(vmid, config):
        lines += [
            "",
            f"auto {interface.name}",
            f"iface {interface.name} inet {'dhcp' if interface.uses_dhcp else 'manual'}",
        ]
    return "\n".join(lines) + "\n"


def _write_inside(root: Path, path: str, content: str, *, owner: int) -> None:
    """Replace a file below `root`, making its directories; a link on the way is refused, one in its place replaced."""
    *directories, name = path.split("/")
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for directory in directories:
            try:
                os.mkdir(directory, 0o755, dir_fd=here)
                os.chown(directory, owner, owner, dir_fd=here, follow_symlinks=False)
            except FileExistsError:
                pass
            try:
                inner = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            except OSError as error:
                raise Refused(f"/{path} of the template leads out of it", remedy="use another template") from error
            os.close(here)
            here = inner
        temporary = f".{name}.kvorum"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=here)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        handle = os.open(temporary, flags, 0o644, dir_fd=here)
        with os.fdopen(handle, "w") as stream:
            os.fchmod(stream.fileno(), 0o644)
            os.fchown(stream.fileno(), owner, owner)
            stream.write(content)
        os.replace(temporary, name, src_dir_fd=here, dst_dir_fd=here)
    finally:
        os.close(here)
