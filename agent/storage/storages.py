"""All storages of a node, by the volume ids that configs use: storage.cfg made into drivers.

A value of Storages belongs to one text of storage.cfg; when the file changes, parse it anew. What a type does is its driver's;
here is only what holds for all: ids, contents, disabled storages, and those that this node does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.storage.directory import make_directory_storage
from agent.storage.driver import DriverFactory, Options, Status, StorageDriver, VolumeInfo
from agent.storage.naming import GUEST_CONTENT, Content, ImageFormat, parse_format
from kvorum.config.sections import Section, SectionConfig
from kvorum.errors import ConfigError, InvalidInput, NotFound, Refused, Unsupported
from kvorum.ids import NodeName, Vmid, Volid, parse_volid

PATH = "storage.cfg"

DRIVERS: Mapping[str, DriverFactory] = {"dir": make_directory_storage}


@dataclass(frozen=True, slots=True)
class _Storage:
    options: Options
    # None for a type that this version does not know: its storages stay in the file and are refused when used.
    driver: StorageDriver | None


class Storages:
    def __init__(self, storages: Mapping[str, _Storage], node: NodeName | None) -> None:
        self._storages = dict(storages)
        self._node = node

    @classmethod
    def parse(cls, text: str | bytes, node: NodeName | None = None) -> "Storages":
        """Of the text of storage.cfg. With `node`, storages that others alone have are refused when used.

        Raises ConfigError for a file that does not parse, an id that is there twice, a key that cannot be right.
        """
        storages: dict[str, _Storage] = {}
        for section in SectionConfig.parse(text, PATH):
            if section.id in storages:
                raise ConfigError(f"storage '{section.id}' is there twice", path=PATH, remedy="rename one of them")
            options = parse_options(section)
            factory = DRIVERS.get(section.type)
            storages[section.id] = _Storage(options, factory(section, options) if factory else None)
        return cls(storages, node)

    def ids(self) -> list[str]:
        """Those that this node can use, in the order of the file."""
        return [id_ for id_, storage in self._storages.items() if not self._why_not(storage)]

    def options(self, storage: str) -> Options:
        """Raises NotFound."""
        return self._known(storage).options

    def path(self, volid: Volid) -> Path:
        """Where the volume is on this node, whether or not it exists."""
        driver, name = self._volume(volid)
        return driver.path(name)

    def format(self, volid: Volid) -> str:
        """raw, qcow2 or subvol; for templates the kind of archive."""
        driver, name = self._volume(volid)
        return driver.format(name)

    def is_shared(self, volid: Volid) -> bool:
        storage, _ = parse_volid(volid)
        return self._known(storage).options.is_shared

    def content(self, volid: Volid) -> Content:
        driver, name = self._volume(volid)
        return driver.kind(name)

    async def allocate(
        self,
        storage: str,
        vmid: Vmid,
        size_bytes: int,
        image_format: str,
        *,
        kind: str = Content.images,
        name: str | None = None,
    ) -> Volid:
        """Make a volume for a guest. `kind` is images (VMs) or rootdir (containers); `name` is the whole name
        (`100/vm-100-disk-0.qcow2`) where the caller must have that one.

        Raises NotFound, Refused (disabled, not on this node), InvalidInput (format, content), AlreadyExists (`name`),
        QuotaExceeded (full), Unreachable, CommandFailed.
        """
        driver = self._usable(storage)
        wanted = parse_format(image_format)
        content = self._require_content(storage, kind)
        if content not in GUEST_CONTENT:
            raise InvalidInput(f"no guest has {kind}", field="content", remedy="use images or rootdir")
        if kind == Content.images and wanted is ImageFormat.subvol:
            raise InvalidInput("a VM cannot have a subvol", field="format", remedy="use raw or qcow2")
        if kind == Content.rootdir and wanted is ImageFormat.qcow2:
            raise InvalidInput("a container cannot have a qcow2 volume", field="format", remedy="use subvol or raw")
        if size_bytes < 0 or (size_bytes == 0 and wanted is not ImageFormat.subvol):
            raise InvalidInput(f"a volume of {size_bytes} bytes", field="size", remedy="name a size, as in 4G")
        made = await driver.allocate(vmid, size_bytes, wanted, kind=content, name=name)
        return Volid(f"{storage}:{made}")

    async def free(self, volid: Volid) -> None:
        """Remove a volume and what it holds; no error when it is gone already. The caller knows that nobody uses it."""
        driver, name = self._volume(volid)
        await driver.free(name)

    async def resize(self, volid: Volid, size_bytes: int) -> None:
        """Make a volume larger that no running guest uses. Raises Refused for less than it has."""
        driver, name = self._volume(volid)
        await driver.resize(name, size_bytes)

    async def size(self, volid: Volid) -> int:
        """Bytes that a guest sees; 0 for a directory, which has no size of its own. Raises NotFound."""
        driver, name = self._volume(volid)
        return await driver.size(name)

    async def list(self, storage: str, content: str | None = None) -> list[VolumeInfo]:
        """Volumes of one kind, or of every kind that the storage may hold; raw images count as images and as rootdir."""
        driver = self._usable(storage)
        allowed = self._known(storage).options.content
        wanted = sorted(allowed) if content is None else [self._require_content(storage, content)]
        found = [volume for kind in wanted for volume in await driver.list(kind)]
        return list({volume.volid: volume for volume in found}.values())

    async def status(self, storage: str) -> Status:
        return await self._usable(storage).status()

    def _volume(self, volid: Volid) -> tuple[StorageDriver, str]:
        storage, name = parse_volid(volid)
        return self._usable(storage), name

    def _known(self, storage: str) -> _Storage:
        if storage not in self._storages:
            have = ", ".join(self._storages) or "none"
            raise NotFound(
                f"there is no storage '{storage}'", remedy=f"use one of storage.cfg ({have}), or add it there"
            )
        return self._storages[storage]

    def _usable(self, storage: str) -> StorageDriver:
        known = self._known(storage)
        if known.driver is None:
            raise Unsupported(
                f"storage '{storage}' is of type {known.options.type}, which this version does not know",
                remedy=f"use a storage of type {', '.join(DRIVERS)}",
            )
        if reason := self._why_not(known):
            raise Refused(f"storage '{storage}' {reason}", remedy="use another storage, or change storage.cfg")
        return known.driver

    def _why_not(self, storage: _Storage) -> str:
        options = storage.options
        if options.is_disabled:
            return "is disabled"
        if self._node is not None and options.nodes and self._node not in options.nodes:
            return f"is not there on node {self._node}"
        return "is of an unknown type" if storage.driver is None else ""

    def _require_content(self, storage: str, content: str) -> Content:
        allowed = self._known(storage).options.content
        if content in allowed:
            return Content(content)
        raise InvalidInput(
            f"storage '{storage}' may not hold {content}",
            field="content",
            remedy=f"add {content} to its 'content' in storage.cfg, or use another storage",
        )


def parse_options(section: Section) -> Options:
    """The keys that every type has. Raises ConfigError. Contents that we do not know are left to others."""
    known = {item.value for item in Content}
    words = section.get_list("content") or sorted(GUEST_CONTENT)
    return Options(
        id=section.id,
        type=section.type,
        content=frozenset(Content(word) for word in words if word in known),
        is_shared=section.get_bool("shared"),
        is_disabled=section.get_bool("disable"),
        nodes=frozenset(section.get_list("nodes")),
    )
