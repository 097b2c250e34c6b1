"""A lab whose nodes have libvirtd, certificates and a test agent (`kvm_agent.py`), but no cluster. For the KVM tests."""

import asyncio
import datetime
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent.access import certificates, key_files
from kvorum.node import Pki
from lab.cluster import Lab
from lab.images import micro
from lab.node import Node

# Other work shares the machine.
PATIENCE_S = 60.0
CONFIG = (
    "memory: 16\nscsihw: virtio-scsi-pci\nscsi0: local:100/vm-100-disk-0.raw\nserial0: socket\nvga: none\nballoon: 0\n"
)


class Failed(Exception):
    """What the agent answered instead of a result."""

    def __init__(self, reason: str, message: str, remedy: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.remedy = remedy


class KvmNode:
    def __init__(self, node: Node, uid: str) -> None:
        self.node = node
        self.uid = uid
        self.process: asyncio.subprocess.Process
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def open(self) -> None:
        agent = str(Path(__file__).with_name("kvm_agent.py"))
        self.process = await asyncio.create_subprocess_exec(
            *self.node.command([sys.executable, agent]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**20,
        )
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        """By the end of its input: a signal would hit `nsenter` only, whose child is the agent."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 20.0)
        finally:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def kill(self) -> None:
        """The agent itself, as by the kernel; then `open` makes the next."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)
        await asyncio.wait_for(self.process.wait(), 20.0)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            reply = json.loads(line)
            future = self._waiting.pop(reply.pop("id"))
            if "reason" in reply:
                future.set_exception(Failed(**reply))
            else:
                future.set_result(reply["result"])

    def send(self, method: str, **given: Any) -> tuple[int, "asyncio.Future[Any]"]:
        number = next(self._ids)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": number, "method": method, "given": given}).encode() + b"\n")
        return number, self._waiting[number]

    async def call(self, method: str, **given: Any) -> Any:
        return await asyncio.wait_for(self.send(method, **given)[1], PATIENCE_S)

    async def state(self, vmid: int = 100) -> str:
        seen = await self.call("observe", vmid=vmid)
        return str(seen["state"])

    async def start(self, disk: Path, *, vmid: int = 100, config: str = CONFIG) -> None:
        await self.call("start", vmid=vmid, config=config, volumes=[["scsi0", str(disk), "raw"]])

    async def beats(self, vmid: int = 100) -> list[tuple[str, int]]:
        """(boot id, counter) of each line that the guest printed on this node."""
        text = await self.call("console_log", vmid=vmid)
        return [(boot, int(count)) for boot, count in re.findall(r"BOOT ([0-9a-f]{16}) COUNT (\d+)\n", text)]

    async def beats_after(self, count: int, vmid: int = 100) -> tuple[str, int]:
        """The first line with a counter above `count`: the guest goes on here."""

        async def look() -> tuple[str, int] | None:
            return next((beat for beat in await self.beats(vmid) if beat[1] > count), None)

        return await until(look)


async def until(look: Callable[[], Any], *, patience_s: float = PATIENCE_S) -> Any:
    """The first thing that `look` finds which is true."""
    deadline = time.monotonic() + patience_s
    while not (found := await look()):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.1)
    return found


def micro_disk(path: Path, *, filled_mib: int = 0) -> Path:
    """The micro guest's disk, with incompressible data behind it to give a copy something to do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(micro.build(), path)
    with path.open("ab") as stream:
        for _ in range(filled_mib):
            stream.write(secrets.token_bytes(2**20))
    return path


@asynccontextmanager
async def kvm_lab(nodes: int) -> AsyncIterator[tuple[Lab, list[KvmNode]]]:
    with Lab(f"kvm{secrets.token_hex(3)}") as lab:
        await asyncio.to_thread(lab.up, nodes, join=False, images=False)
        made = [KvmNode(node, str(uuid.uuid4())) for node in lab.nodes]
        install_certificates(made)
        for one in made:
            await one.open()
        try:
            yield lab, made
        finally:
            for one in made:
                await one.close()


def install_certificates(nodes: list[KvmNode]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    authority = certificates.make_authority("test", now=now)
    for one in nodes:
        key = certificates.new_key()
        request = certificates.make_request(key, one.node.name)
        signed = certificates.sign_node(
            request, authority, uid=one.uid, name=one.node.name, address=one.node.address, now=now
        )
        directory = one.node.layout.disk / "var/lib/kvorum/pki"
        key_files.install(
            Pki(directory), ca=authority.certificate, certificate=signed, key=certificates.key_to_pem(key)
        )
