"""Make a guest: reserve its number by its config file, make its volumes, write the file as it shall be."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from agent.guests.completion import complete_config
from agent.guests.domain_nics import MAC_PREFIX
from agent.guests.template import unpack_template
from agent.inventory import GuestKind, guest_path
from agent.tasks import TaskHandle, UndoStep
from kvorum.config import GuestConfig, parse_properties, render_properties
from kvorum.errors import AlreadyExists, InvalidInput, NotFound
from kvorum.ids import Vmid, Volid, parse_volid

from .host import Host
from .power import start_now
from .schema import check_config
from .volumes import Wish, make_volumes, plan_volumes

REMOVE_CONFIG = "remove-config"


@dataclass(frozen=True, slots=True)
class CreatePlan:
    vmid: Vmid
    kind: GuestKind
    # The file while the volumes are being made: everything but them, and the lock.
    reserved: GuestConfig
    # The settings as asked for; lines of `wishes` get their volumes in the end.
    settings: Mapping[str, str]
    wishes: tuple[Wish, ...]
    template: str = ""


def plan_create(
    vmid: Vmid, kind: GuestKind, settings: Mapping[str, str], *, template: str = "", rng: random.Random
) -> CreatePlan:
    """Pure. Raises InvalidInput or ConfigError for settings that make no guest."""
    check_config(settings, kind)
    wishes = plan_volumes(settings, kind)
    if kind is GuestKind.container:
        if "rootfs" not in settings:
            raise InvalidInput("a container needs a rootfs", field="rootfs", remedy="write rootfs=local:1")
        if template:
            parse_volid(template, field="template")
        elif any(wish.disk.key == "rootfs" for wish in wishes):
            raise InvalidInput("a new rootfs needs a template", field="template", remedy="local:vztmpl/NAME.tar.gz")
    elif template:
        raise InvalidInput("VMs are made from images, not from templates", field="template", remedy="use import-from")
    completed = (
        complete_config(GuestConfig.of({"memory": "512", **settings}), random=rng) if kind is GuestKind.vm else None
    )
    config = completed if completed is not None else _complete_container(settings, rng)
    reserved = config.without(*(wish.disk.key for wish in wishes)).set("lock", "create")
    return CreatePlan(vmid, kind, reserved, dict(config), wishes, template)


def _complete_container(settings: Mapping[str, str], rng: random.Random) -> GuestConfig:
    """What a container's file always has; network cards get an address that they keep."""
    config = GuestConfig.of({"memory": "512", "swap": "0", "ostype": "unmanaged", "arch": "amd64", **settings})
    for number, value in config.numbered("net").items():
        options = parse_properties(value, default_key="name", field=f"net{number}")
        if "hwaddr" not in options:
            mac = ":".join([MAC_PREFIX, *(f"{rng.getrandbits(8):02X}" for _ in range(3))])
            config = config.set(f"net{number}", render_properties({"name": f"eth{number}", **options, "hwaddr": mac}))
    return config


async def create_guest(host: Host, handle: TaskHandle, plan: CreatePlan, *, start: bool = False) -> None:
    """Raises AlreadyExists when the number is taken anywhere in the cluster."""
    async with host.queue.turn(plan.vmid, "create"):
        await _require_free(host, plan.vmid)
        path = guest_path(host.node(), plan.kind, plan.vmid)
        await host.store.write(path, plan.reserved.render().encode(), absent=True, parents=True, reason="create guest")
        handle.undo(lambda: remove_reserved(host, path), UndoStep(kind=REMOVE_CONFIG, arguments={"path": path}))
        storages = await host.storages()
        made = await make_volumes(handle, storages, plan.vmid, plan.kind, plan.wishes)
        if plan.template and (rootfs := made.get("rootfs")):
            volid = Volid(parse_properties(rootfs, default_key="volume")["volume"])
            handle.progress(-1.0, f"unpack {plan.template}")
            tarball = storages.path(Volid(plan.template))
            await unpack_template(tarball, storages.path(volid), vmid=plan.vmid, config=GuestConfig.of(plan.settings))
        config = GuestConfig.of({**plan.settings, **made})
        await host.rewrite(await host.inventory.at(path, linearizable=True), config, reason="create guest")
        # The guest is whole: a start that fails does not unmake it.
        handle.commit()
        handle.log(f"made {path}")
        if start:
            await start_now(host, handle, await host.own(plan.vmid))


async def remove_reserved(host: Host, path: str) -> None:
    """Take back a number whose guest was never finished; a file without the lock is somebody's guest and stays."""
    try:
        file = await host.inventory.at(path, linearizable=True)
    except NotFound:
        return
    if file.config.get("lock") == "create":
        await host.store.delete(path, expected_version=file.version, reason="undo create guest")


async def _require_free(host: Host, vmid: Vmid) -> None:
    try:
        found = await host.inventory.find_current(vmid)
    except NotFound:
        return
    raise AlreadyExists(
        f"guest id {vmid} is taken by a guest on {found.node}", remedy="take a free one: 'kvorum guest next-id'"
    )
