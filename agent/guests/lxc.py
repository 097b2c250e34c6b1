"""Containers, by liblxc.

Starting is liblxc's `lxc-start`, a program of its own: the container's monitor then is nobody's child, and neither the agent's
end nor its restart reaches the container. Everything else is asked of the kernel and done through it (`lxc_cgroups`): liblxc's
calls go through the monitor, which may be stuck, and its Python binding waits for it with the interpreter's lock held, so one
stuck container would stop the whole agent. `docs/internals/guests-lxc.md` has the measurements.

What a config means is `lxc_config`'s (pure); what is in a root file system is `template`'s.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from agent.guests import lxc_cgroups
from agent.guests.driver import STOPPED, Guest, Observed, RunState
from agent.guests.lxc_config import (
    MARKER,
    Host,
    IdMap,
    container_cgroup,
    is_image,
    is_unprivileged,
    lxc_config,
    monitor_cgroup,
    monitor_end_cgroup,
    mounted_at,
)
from agent.guests.lxc_log import first_error, signal_number
from agent.guests.lxc_network import interfaces
from agent.guests.template import init_program
from agent.guests.traffic import Traffic, of_interfaces
from agent.processes import run
from kvorum.errors import CommandFailed, NotFound, Refused, Timeout
from kvorum.ids import VMID_MIN, Vmid
from kvorum.node import LOG, write_atomically

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
# From SIGKILL to the last process gone: only a process stuck in the kernel (a dead NFS server) takes longer.
STOP_TIMEOUT_S = 15.0
# The monitor has this long to take down the network and cgroups of a container that is gone, before it is killed too.
MONITOR_TIMEOUT_S = 5.0
_POLL_S = 0.05
_SWEEPS_MAX = 40

_CONTAINER_PREFIX = "kvorum-ct-"


class LxcDriver:
    """A GuestDriver. Keeps nothing in memory but locks; a new one finds the containers that an old one started."""

    def __init__(
        self,
        *,
        lxc_path: Path = Path("/var/lib/lxc"),
        log_directory: Path = LOG,
        id_map: IdMap | None = None,
    ) -> None:
        # liblxc cannot use a relative path.
        assert lxc_path.is_absolute()
        self._lxc_path = lxc_path
        self._console_directory = log_directory / "console"
        self._log_directory = log_directory / "lxc"
        self._id_map = id_map or IdMap()
        self._locks: defaultdict[Vmid, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self, guest: Guest) -> None:
        """Raises Refused, NotFound (bridge, root file system), ConfigError, CommandFailed with liblxc's own words, Timeout."""
        async with self._locks[guest.vmid]:
            try:
                await asyncio.to_thread(self._prepare, guest)
            except OSError as error:
                raise CommandFailed(
                    f"container {guest.vmid} cannot be prepared: {error}", remedy="see whether its volumes can be read"
                ) from error
            try:
                await self._start_program(guest.vmid)
            except BaseException:
                # Half a container must not stay, nor go on starting on its own when the caller has given up.
                await asyncio.shield(self._end(guest.vmid))
                raise

    async def shutdown(self, vmid: Vmid, *, timeout_s: float) -> None:
        """Signals the container's init, and waits. A paused container cannot hear it, and is refused."""
        deadline = time.monotonic() + timeout_s
        observed = await self.observe(vmid)
        if observed.state is RunState.paused:
            raise Refused(f"container {vmid} is paused", remedy="resume it, or stop it hard")
        if observed.pid is not None:
            await asyncio.to_thread(self._send_halt, vmid, observed.pid)
        while await asyncio.to_thread(self._is_there, vmid):
            if time.monotonic() >= deadline:
                raise Timeout(
                    f"container {vmid} still runs {timeout_s:g} s after it was asked to shut down",
                    remedy="give it more time, or stop it hard",
                )
            await asyncio.sleep(_POLL_S)
        await self._sweep_up(vmid)

    async def stop(self, vmid: Vmid) -> None:
        """Kills every process of the container, and returns when it and its monitor are gone. Raises Timeout."""
        async with self._locks[vmid]:
            await self._end(vmid)

    async def observe(self, vmid: Vmid) -> Observed:
        return await asyncio.to_thread(self._observe, vmid)

    async def observe_all(self) -> Mapping[Vmid, Observed]:
        return await asyncio.to_thread(self._observe_all)

    async def console_log(self, vmid: Vmid, *, tail_bytes: int) -> bytes:
        return await asyncio.to_thread(self._read_console, vmid, tail_bytes)

    async def forget(self, vmid: Vmid) -> None:
        """Raises Refused while the container runs."""
        async with self._locks[vmid]:
            await asyncio.to_thread(self._remove_files, vmid)

    def _prepare(self, guest: Guest) -> None:
        """Everything that must be there before liblxc is asked; what is missing is said better here than by liblxc."""
        vmid, config = guest.vmid, guest.config
        if self._is_there(vmid):
            raise Refused(f"container {vmid} already runs", remedy="stop it first")
        init = self._check_root(guest)
        for interface in interfaces(vmid, config):
            if not Path("/sys/class/net", interface.bridge).exists():
                raise NotFound(
                    f"net{interface.index}: this node has no bridge {interface.bridge}",
                    remedy=f"make the bridge on {guest.node}, or name one that is there",
                )
        self._give_new_volumes(guest)
        path = self._config_path(vmid)
        if path.exists() and not path.read_text(errors="replace").startswith(MARKER):
            raise Refused(
                f"{path} belongs to a container that is not Kvorum's", remedy="move it away, or take another id"
            )
        for directory in (self._console_directory, self._log_directory):
            directory.mkdir(parents=True, exist_ok=True)
        host = self._host()
        write_atomically(path, lxc_config(guest, host, init=init).encode())
        for volume in guest.volumes:
            if is_image(config, volume):
                mounted_at(vmid, volume, host).mkdir(exist_ok=True)
        # liblxc appends, and what it said at the last start would be taken for this one's.
        self._log_path(vmid).unlink(missing_ok=True)
        # Left by a monitor that was killed; liblxc refuses to start over them.
        self._sweep(vmid)

    def _check_root(self, guest: Guest) -> str:
        """Where /sbin/init leads to; empty for a root that cannot be looked into from here."""
        root = next((volume for volume in guest.volumes if volume.key == "rootfs"), None)
        if root is None:
            return ""
        remedy = "create the container from a template, or restore it"
        if not root.path.exists():
            raise NotFound(f"the root file system of container {guest.vmid} is missing: {root.path}", remedy=remedy)
        if root.format != "subvol":
            return ""
        init = init_program(root.path)
        if not init and "lxc.init.cmd" not in guest.config:
            raise NotFound(f"the root file system of container {guest.vmid} has no /sbin/init", remedy=remedy)
        owner = root.path.stat().st_uid
        expected = self._id_map.first if is_unprivileged(guest.config) else 0
        if owner != expected and "lxc.idmap" not in guest.config:
            raise Refused(
                f"the root file system of container {guest.vmid} belongs to user {owner}, not {expected}",
                remedy="set 'unprivileged' as it was when the container was created",
            )
        return init

    def _give_new_volumes(self, guest: Guest) -> None:
        """A new, empty mount point belongs to the host's root, whom an unprivileged container does not know."""
        if not is_unprivileged(guest.config):
            return
        for volume in guest.volumes:
            is_ours = volume.format == "subvol" and volume.key != "rootfs"
            if is_ours and volume.path.stat().st_uid == 0 and not any(volume.path.iterdir()):
                os.chown(volume.path, self._id_map.first, self._id_map.first)

    def _host(self) -> Host:
        layout = lxc_cgroups.read_layout()
        memory = layout.v1.get("memory")
        enabled = Path("/sys/module/apparmor/parameters/enabled")
        return Host(
            v1_controllers=frozenset(layout.v1),
            v2_controllers=layout.v2_controllers,
            counts_swap=memory is not None and (memory / "memory.memsw.limit_in_bytes").exists(),
            has_apparmor=enabled.exists() and enabled.read_text().startswith("Y"),
            cpus=tuple(sorted(os.sched_getaffinity(0))),
            id_map=self._id_map,
            lxc_path=self._lxc_path,
            console_directory=self._console_directory,
        )

    async def _start_program(self, vmid: Vmid) -> None:
        command = [*self._start_command(vmid), "--daemon"]
        command += ["--logfile", str(self._log_path(vmid)), "--logpriority", "WARN"]
        starting = asyncio.ensure_future(run(command, timeout_s=START_TIMEOUT_S))
        try:
            # Killed half-way it would leave a daemon that nobody has seen yet, and that goes on starting.
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            raise
        except (CommandFailed, Timeout) as error:
            said = await asyncio.to_thread(self._logged_error, vmid)
            raise type(error)(
                f"container {vmid} does not start: {said or error.message}",
                remedy=f"read {self._log_path(vmid)}, and the container's console log",
                details=error.details,
            ) from error
        log.info("guest %d: container started", vmid)

    async def _end(self, vmid: Vmid) -> None:
        """Kill, verify, and take away what is left."""
        started = time.monotonic()
        while await asyncio.to_thread(self._kill, vmid, with_monitor=time.monotonic() - started > MONITOR_TIMEOUT_S):
            if time.monotonic() - started > STOP_TIMEOUT_S:
                left = sorted(await asyncio.to_thread(self._pids, vmid))
                raise Timeout(
                    f"container {vmid} has processes that do not die: {', '.join(map(str, left))}",
                    remedy="look at /proc/PID/stack; a process that waits for dead storage goes when the storage is back",
                )
            await asyncio.sleep(_POLL_S)
        await self._sweep_up(vmid)

    def _kill(self, vmid: Vmid, *, with_monitor: bool) -> bool:
        """True when something was still there."""
        found = set()
        for pid in self._starters(vmid):
            found.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        layout = lxc_cgroups.read_layout()
        found |= lxc_cgroups.kill(layout, container_cgroup(vmid))
        for name in (monitor_cgroup(vmid), monitor_end_cgroup(vmid)):
            found |= lxc_cgroups.kill(layout, name) if with_monitor else lxc_cgroups.pids(layout, name)
        return bool(found)

    def _starters(self, vmid: Vmid) -> list[int]:
        """Our lxc-start for this container, before it has become a monitor in a cgroup of its own."""
        words = "\0".join(self._start_command(vmid)).encode() + b"\0"
        return [pid for pid in lxc_cgroups.all_pids() if lxc_cgroups.command_line(pid).startswith(words)]

    def _start_command(self, vmid: Vmid) -> list[str]:
        return ["lxc-start", "--name", str(vmid), "--lxcpath", str(self._lxc_path)]

    def _send_halt(self, vmid: Vmid, init: int) -> None:
        """The signal of the container's config; without one, what liblxc would choose, but it does not know busybox."""
        number = signal.SIGRTMIN + 3
        if configured := self._configured_halt(vmid):
            number = configured
        elif lxc_cgroups.program(init) == "busybox":
            number = signal.SIGUSR1
        elif not lxc_cgroups.blocks_signal(init, number):
            number = signal.SIGPWR
        lxc_cgroups.signal_member(init, container_cgroup(vmid), number)

    def _configured_halt(self, vmid: Vmid) -> int:
        number = 0
        with contextlib.suppress(OSError):
            for line in self._config_path(vmid).read_text(errors="replace").splitlines():
                key, _, value = line.partition("=")
                if key.strip() == "lxc.signal.halt":
                    number = signal_number(value.strip())
        return number

    def _observe(self, vmid: Vmid) -> Observed:
        layout = lxc_cgroups.read_layout()
        name = container_cgroup(vmid)
        members = lxc_cgroups.pids(layout, name)
        if not members:
            return STOPPED
        init = lxc_cgroups.find_init(layout, name)
        state = RunState.paused if lxc_cgroups.is_frozen(layout, name) else RunState.running
        # Without its init the container is on its way up or down, but it is there.
        return Observed(state, init, lxc_cgroups.uptime_s(init) if init is not None else 0.0)

    def _observe_all(self) -> dict[Vmid, Observed]:
        found = {}
        for name in sorted(lxc_cgroups.names(lxc_cgroups.read_layout(), _CONTAINER_PREFIX)):
            number = name.removeprefix(_CONTAINER_PREFIX)
            if not number.isascii() or not number.isdigit() or int(number) < VMID_MIN:
                continue
            observed = self._observe(Vmid(int(number)))
            if observed.state is not RunState.stopped:
                found[Vmid(int(number))] = observed
        return found

    async def traffic(self) -> Mapping[Vmid, Traffic]:
        return await asyncio.to_thread(self._traffic)

    def _traffic(self) -> dict[Vmid, Traffic]:
        layout = lxc_cgroups.read_layout()
        found = {}
        for vmid in self._observe_all():
            read, written = lxc_cgroups.io_bytes(layout, container_cgroup(vmid)) or (None, None)
            received, sent = of_interfaces(f"veth{vmid}i")
            found[vmid] = Traffic(received, sent, read, written)
        return found

    def _pids(self, vmid: Vmid) -> set[int]:
        layout = lxc_cgroups.read_layout()
        return {pid for name in _cgroups(vmid) for pid in lxc_cgroups.pids(layout, name)}

    def _is_there(self, vmid: Vmid) -> bool:
        """Runs, or its monitor still cleans up: in either case the volumes are in use."""
        return bool(self._pids(vmid))

    async def _sweep_up(self, vmid: Vmid) -> None:
        """A cgroup is busy for a moment longer than its last process can be seen."""
        for _ in range(_SWEEPS_MAX):
            if await asyncio.to_thread(self._sweep, vmid):
                return
            await asyncio.sleep(_POLL_S)
        log.warning("guest %d: its cgroups cannot be removed", vmid)

    def _sweep(self, vmid: Vmid) -> bool:
        """False when something is left in one of them."""
        layout = lxc_cgroups.read_layout()
        are_gone = [lxc_cgroups.sweep(layout, name) for name in _cgroups(vmid)]
        return all(are_gone)

    def _read_console(self, vmid: Vmid, tail_bytes: int) -> bytes:
        path = self._console_directory / f"{vmid}.log"
        content = b""
        # liblxc starts a new file at each mebibyte and keeps one old one.
        for part in (path, path.with_name(f"{path.name}.1")):
            if len(content) < tail_bytes:
                content = _tail(part, tail_bytes - len(content)) + content
        return content

    def _remove_files(self, vmid: Vmid) -> None:
        if self._is_there(vmid):
            raise Refused(f"container {vmid} runs", remedy="stop it first")
        self._sweep(vmid)
        console = self._console_directory / f"{vmid}.log"
        for path in (console, console.with_name(f"{console.name}.1"), self._log_path(vmid)):
            path.unlink(missing_ok=True)
        config = self._config_path(vmid)
        if config.exists() and config.read_text(errors="replace").startswith(MARKER):
            config.unlink()
            for directory in (*config.parent.iterdir(), config.parent):
                # Where images were mounted: empty, unless somebody keeps files of their own there.
                with contextlib.suppress(OSError):
                    directory.rmdir()

    def _logged_error(self, vmid: Vmid) -> str:
        try:
            return first_error(self._log_path(vmid).read_text(errors="replace"))
        except OSError:
            return ""

    def _config_path(self, vmid: Vmid) -> Path:
        return self._lxc_path / str(vmid) / "config"

    def _log_path(self, vmid: Vmid) -> Path:
        return self._log_directory / f"{vmid}.log"


def _cgroups(vmid: Vmid) -> tuple[str, ...]:
    return container_cgroup(vmid), monitor_cgroup(vmid), monitor_end_cgroup(vmid)


def _tail(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - count))
            return stream.read(count)
    except OSError:
        return b""
