"""Builds all images and puts them where a lab's nodes look for them.

/srv/shared/images/micro.raw                    copy it to a volume; it writes to its disk
/srv/shared/images/{vmlinux,initrd.cpio}          Linux guest, by `-kernel` and `-initrd`
{/var/lib/vz,/srv/shared}/template/cache/busybox.tar.gz
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from kvorum.errors import KvorumError
from lab import requirements
from lab.images import cache, container, linux, micro
from lab.layout import LabLayout


def build_all() -> dict[str, Path]:
    """Name -> file in the cache."""
    image = linux.build()
    return {
        "micro.raw": micro.build(),
        "vmlinux": image.kernel,
        "initrd.cpio": image.initrd,
        container.FILE_NAME: container.build(),
    }


def provide(layout: LabLayout, nodes: int, say: Callable[[str], None]) -> None:
    """A Linux guest that cannot be fetched is said and left out: a lab without network is still a lab."""
    requirements.check(requirements.IMAGE_PROGRAMS)
    images = layout.shared / "images"
    images.mkdir(exist_ok=True)
    shutil.copyfile(micro.build(), images / "micro.raw")
    template = container.build()
    storages = [layout.shared, *(layout.node(number).disk / "var/lib/vz" for number in range(1, nodes + 1))]
    for storage in storages:
        cache.link_or_copy(template, storage / "template/cache" / container.FILE_NAME)
    try:
        image = linux.build()
    except KvorumError as error:
        say(f"no Linux guest: {error.message}")
        return
    cache.link_or_copy(image.kernel, images / "vmlinux")
    cache.link_or_copy(image.initrd, images / "initrd.cpio")
