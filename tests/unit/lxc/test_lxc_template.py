"""Root file systems made of templates, also of hostile ones."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from agent.guests.lxc_config import IdMap
from agent.guests.template import init_program, personalise, unpack_template
from agent.processes import run_blocking
from kvorum.config.guest import GuestConfig
from kvorum.errors import CommandFailed, NotFound, Refused
from kvorum.ids import Vmid

VMID = Vmid(101)
CONFIG = GuestConfig.parse(
    "hostname: web.example.org\nnameserver: 10.0.0.53 10.0.0.54\nsearchdomain: example.org\n"
    "net0: name=eth0,bridge=vmbr0,ip=10.0.0.5/24\nnet1: name=eth1,bridge=vmbr0,ip=dhcp\nostype: debian\n"
)


def member(name: str, content: bytes = b"", *, mode: int = 0o644, link: str = "", uid: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.uid, info.gid = mode, uid, uid
    if link:
        info.type, info.linkname = tarfile.SYMTYPE, link
    elif name.endswith("/"):
        info.type = tarfile.DIRTYPE
    else:
        info.size = len(content)
    return info


def archive(path: Path, *members: tarfile.TarInfo, compression: str = "gz") -> Path:
    with tarfile.open(path, f"w:{compression}") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return path


GOOD = (
    member("./etc/", mode=0o755),
    member("./sbin/", mode=0o755),
    member("./sbin/init", link="/bin/busybox"),
    member("./bin/", mode=0o755),
    member("./bin/busybox", b"12", mode=0o4755),
    member("./tmp/", mode=0o1777),
    member("./srv/mine", b"1", uid=1000),
    member("./dev/", mode=0o755),
    member("./dev/leftover", b"1"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.mark.parametrize("compression", ["", "gz", "xz", "bz2"])
async def test_a_template_is_unpacked_with_modes_and_owners(tmp_path: Path, root: Path, compression: str) -> None:
    await unpack_template(
        archive(tmp_path / "any.name", *GOOD, compression=compression), root, vmid=VMID, config=CONFIG
    )
    assert (root / "bin/busybox").stat().st_mode & 0o7777 == 0o4755
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "srv/mine").stat().st_uid == 1000
    # Devices are made for each start; what a template brings along in /dev is not used.
    assert list((root / "dev").iterdir()) == []
    assert (root / "etc/hostname").read_text() == "web\n"
    assert init_program(root) == "bin/busybox"


async def test_files_of_an_unprivileged_container_get_shifted_owners(tmp_path: Path, root: Path) -> None:
    config = CONFIG.set("unprivileged", "1")
    # pytest keeps its directories to itself, and the users that unpack are others.
    for directory in (root, *root.parents):
        if directory.stat().st_uid == os.getuid() and directory.is_relative_to(tmp_path.parents[1]):
            directory.chmod(0o755)
    await unpack_template(
        archive(tmp_path / "t.tar.gz", *GOOD), root, vmid=VMID, config=config, id_map=IdMap(200_000, 65_536)
    )
    assert root.stat().st_uid == 200_000
    assert (root / "srv/mine").stat().st_uid == 201_000
    assert (root / "etc/hostname").stat().st_uid == 200_000
    # Changing the owner afterwards would have lost it.
    assert (root / "bin/busybox").stat().st_mode & 0o7777 == 0o4755


@pytest.mark.parametrize(
    "members",
    [
        (member("../../evil", b"1"),),
        (member("/evil", b"1"),),
        (member("./out", link=".."), member("./out/evil", b"1")),
        (member("./out", link="{outside}"), member("./out/evil", b"1")),
        (member("./etc", link="{outside}"),),
        (member("./etc/", mode=0o755), member("./etc/hosts", link="{outside}/evil")),
    ],
)
async def test_nothing_is_ever_written_outside_of_the_root(
    tmp_path: Path, root: Path, members: tuple[tarfile.TarInfo, ...]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for info in members:
        info.linkname = info.linkname.replace("{outside}", str(outside))
    hostile = archive(tmp_path / "hostile.tar.gz", *members)
    try:
        await unpack_template(hostile, root, vmid=VMID, config=CONFIG)
    except (CommandFailed, Refused):
        assert list(root.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile.tar.gz", "outside", "root"]
    assert list(outside.iterdir()) == []
    assert not Path("/evil").exists()


async def test_what_is_no_archive_is_refused_and_leaves_the_root_empty(tmp_path: Path, root: Path) -> None:
    broken = archive(tmp_path / "broken.tar.gz", *GOOD)
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(CommandFailed, match=r"cannot unpack broken\.tar\.gz"):
        await unpack_template(broken, root, vmid=VMID, config=CONFIG)
    assert list(root.iterdir()) == []
    with pytest.raises(NotFound, match=r"no template missing\.tar"):
        await unpack_template(tmp_path / "missing.tar", root, vmid=VMID, config=CONFIG)


async def test_only_an_empty_directory_is_filled(tmp_path: Path, root: Path) -> None:
    (root / "precious").write_text("x")
    with pytest.raises(Refused, match="not empty"):
        await unpack_template(archive(tmp_path / "t.tar", *GOOD, compression=""), root, vmid=VMID, config=CONFIG)
    assert (root / "precious").exists()
    with pytest.raises(NotFound, match="no volume"):
        await unpack_template(tmp_path / "t.tar", root / "missing", vmid=VMID, config=CONFIG)


async def test_an_image_is_filled_without_being_mounted(tmp_path: Path) -> None:
    image = tmp_path / "vm-101-disk-0.raw"
    with image.open("wb") as stream:
        stream.truncate(8 << 20)
    await unpack_template(archive(tmp_path / "t.tar.gz", *GOOD), image, vmid=VMID, config=CONFIG)
    listed = run_blocking(["debugfs", "-R", "ls -l /", image], timeout_s=10).text
    assert all(name in listed for name in ("etc", "sbin", "lost+found"))
    assert "web" in run_blocking(["debugfs", "-R", "cat /etc/hostname", image], timeout_s=10).text
    assert "User:  1000" in run_blocking(["debugfs", "-R", "stat /srv/mine", image], timeout_s=10).text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tar.gz", image.name]


async def test_a_template_too_large_for_its_image_is_refused_and_leaves_no_tree(tmp_path: Path) -> None:
    image = tmp_path / "vm-101-disk-0.raw"
    with image.open("wb") as stream:
        stream.truncate(1 << 20)
    big = archive(tmp_path / "t.tar.gz", *GOOD, member("./big", b"1" * (4 << 20)))
    with pytest.raises(CommandFailed, match=r"mkfs\.ext4"):
        await unpack_template(big, image, vmid=VMID, config=CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tar.gz", image.name]


def test_a_container_is_told_its_name_its_resolvers_and_its_interfaces(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
    personalise(root, VMID, CONFIG)
    assert (root / "etc/hosts").read_text().splitlines()[-1] == "10.0.0.5\tweb.example.org web"
    assert (root / "etc/resolv.conf").read_text() == "search example.org\nnameserver 10.0.0.53\nnameserver 10.0.0.54\n"
    assert (root / "etc/network/interfaces").read_text().split("\n\n")[1:] == [
        "auto eth0\niface eth0 inet manual",
        "auto eth1\niface eth1 inet dhcp\n",
    ]
    personalise(root, VMID, CONFIG.set("hostname", "other"))
    assert (root / "etc/hostname").read_text() == "other\n"


@pytest.mark.parametrize(
    ("links", "found"),
    [
        ({"sbin/init": ""}, "sbin/init"),
        (
            {"sbin": "usr/sbin", "usr/sbin/init": "../lib/systemd/systemd", "usr/lib/systemd/systemd": ""},
            "usr/lib/systemd/systemd",
        ),
        ({"sbin/init": "/bin/busybox", "bin/busybox": ""}, "bin/busybox"),
        ({"sbin/init": "../../../../bin/busybox", "bin/busybox": ""}, "bin/busybox"),
        ({"sbin/init": "/not/there"}, ""),
        ({"sbin/init": "init"}, ""),
        ({"bin/sh": ""}, ""),
    ],
)
def test_the_init_is_found_without_leaving_the_root(root: Path, links: dict[str, str], found: str) -> None:
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if target:
            (root / name).symlink_to(target)
        else:
            (root / name).write_text("")
    assert init_program(root) == found
