"""A port of a node on the machine's loopback: a small user-space relay for each port published.

It listens outside and connects from inside the node's network namespace, so the lab's network stays closed and cuts of
the switch do not touch it. It looks up the node's PID 1 for each connection: it survives power cuts of the node.
"""

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

import msgspec

from kvorum.errors import NotFound, Refused
from kvorum.node import write_atomically
from lab import cgroups, processes, syscalls
from lab.layout import LabLayout, NodeLayout, parse_node

_LISTENER = 3
_CHUNK_BYTES = 65536
_CONNECT_TIMEOUT_S = 5.0


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One published port. `address` is where to connect on the machine."""

    node: str
    port: int
    address: str
    pid: int
    started: int


def publish(node: NodeLayout, port: int, *, local_port: int = 0) -> Published:
    """Start a relay; the one that is there for the same port is answered again. Raises Refused for a port in use."""
    present = find(node, port)
    if present is not None:
        if local_port and not present.address.endswith(f":{local_port}"):
            raise Refused(f"{node.name}:{port} is published as {present.address}", remedy="unpublish it first")
        return present
    layout = node.lab
    layout.relays.mkdir(exist_ok=True)
    cgroups.make(layout.relay_cgroup, has_leaf=False)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", local_port))
        except OSError as error:
            raise Refused(
                f"cannot listen on 127.0.0.1:{local_port}: {error.strerror}", remedy="choose --port"
            ) from error
        listener.listen(64)
        host, bound = listener.getsockname()
        command = [sys.executable, "-m", "lab.relay", str(layout.base), layout.name, node.name, str(port)]
        pid = processes.spawn_detached(
            cgroups.joining(layout.relay_cgroup, command, leaf=False),
            environment={"PATH": os.defpath, "KVORUM_LAB": layout.name, "PYTHONPATH": _packages()},
            log=layout.relays / f"{node.name}-{port}.log",
            keep={listener.fileno(): _LISTENER},
        )
    started = processes.start_time(pid)
    if started is None:
        raise NotFound(f"the relay for {node.name}:{port} ended at once", remedy=f"read the log in {layout.relays}")
    published = Published(node=node.name, port=port, address=f"{host}:{bound}", pid=pid, started=started)
    write_atomically(_record(node, port), msgspec.json.encode(published))
    return published


def unpublish(node: NodeLayout, port: int) -> None:
    """End the relay of a port. Raises NotFound."""
    present = find(node, port)
    if present is None:
        raise NotFound(f"{node.name}:{port} is not published")
    processes.kill(processes.Recorded(pid=present.pid, started=present.started))
    _record(node, port).unlink(missing_ok=True)


def find(node: NodeLayout, port: int) -> Published | None:
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        published = msgspec.json.decode(_record(node, port).read_bytes(), type=Published)
        if processes.start_time(published.pid) == published.started:
            return published
    return None


def published(layout: LabLayout) -> list[Published]:
    """All that live, by node and port."""
    found = []
    for path in sorted(layout.relays.glob("*.json")):
        name, _, port = path.stem.partition("-")
        one = find(layout.node(parse_node(name)), int(port))
        if one is not None:
            found.append(one)
    return found


def connect_inside(pid: int, address: str, port: int, *, timeout_s: float = _CONNECT_TIMEOUT_S) -> socket.socket:
    """A TCP socket made in the network namespace of `pid` (it keeps it); the calling thread comes back home."""
    home = Path("/proc/thread-self/ns/net")
    handle = os.open(home, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.enter_namespace(Path(f"/proc/{pid}/ns/net"), syscalls.CLONE_NEWNET)
        try:
            made = socket.socket()
        finally:
            syscalls.enter_namespace(Path(f"/proc/self/fd/{handle}"), syscalls.CLONE_NEWNET)
    finally:
        os.close(handle)
    made.settimeout(timeout_s)
    try:
        made.connect((address, port))
    except BaseException:
        made.close()
        raise
    return made


async def serve(listener: socket.socket, node: NodeLayout, port: int) -> None:
    """Relay until killed. A connection that the node does not take is closed, as if refused."""

    async def relay_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            noted = processes.recall(node.record)
            if noted is None:
                return
            inside = await asyncio.to_thread(connect_inside, noted.pid, node.address, port)
            inside.setblocking(False)
            there_reader, there_writer = await asyncio.open_connection(sock=inside)
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, there_writer))
                group.create_task(_copy(there_reader, writer))
        except* OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(relay_one, sock=listener)
    await server.serve_forever()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Until the end of `source`; the other direction may go on (half-closed connections)."""
    try:
        while chunk := await source.read(_CHUNK_BYTES):
            sink.write(chunk)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
    except OSError:
        sink.close()
        raise


def _record(node: NodeLayout, port: int) -> Path:
    return node.lab.relays / f"{node.name}-{port}.json"


def _packages() -> str:
    return str(Path(__file__).resolve().parent.parent)


def main(base: str, lab: str, node: str, port: str) -> None:
    listener = socket.socket(fileno=_LISTENER)
    layout = LabLayout(name=lab, base=Path(base)).node(parse_node(node))
    asyncio.run(serve(listener, layout, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
