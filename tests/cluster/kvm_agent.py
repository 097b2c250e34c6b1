"""A small agent around the KVM driver and the migration steps, run on a lab's node: one JSON request a line in, answers out.

Between two of them the tunnel's bytes go over plain TCP, where the real agents have their gRPC stream.
"""

import asyncio
import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.guests.domain_xml import Host
from agent.guests.driver import Guest, Observed, Volume
from agent.guests.kvm import KvmDriver
from agent.migration import live, ports, relays, tunnel
from agent.migration.streams import ByteStream, SocketStream
from kvorum.config.guest import GuestConfig
from kvorum.errors import KvorumError
from kvorum.ids import NodeName, NodeUid, Vmid
from kvorum.node import Pki

TUNNEL_PORT = 7000


def told(observed: Observed) -> dict[str, Any]:
    return {"state": observed.state.value, "pid": observed.pid, "uptime_s": observed.uptime_s}


class Agent:
    def __init__(self) -> None:
        self.driver = KvmDriver(Host("tcg"))
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.incoming = contextlib.AsyncExitStack()
        self.events: list[list[Any]] = []
        self.progress: list[list[Any]] = []

    async def answer(self, method: str, given: dict[str, Any]) -> Any:
        driver, vmid = self.driver, Vmid(given.get("vmid", 100))
        match method:
            case "start":
                volumes = tuple(Volume(key, Path(path), kind) for key, path, kind in given["volumes"])
                await driver.start(Guest(vmid, GuestConfig.parse(given["config"]), volumes, NodeName("n1"), 1))
            case "shutdown":
                await driver.shutdown(vmid, timeout_s=given["timeout_s"])
            case "stop" | "pause" | "resume" | "forget" | "end_late_start":
                await getattr(driver, method)(vmid)
            case "observe":
                return told(await driver.observe(vmid))
            case "observe_all":
                return {str(key): told(value) for key, value in (await driver.observe_all()).items()}
            case "traffic":
                return {str(key): asdict(value) for key, value in (await driver.traffic()).items()}
            case "console_log":
                return (await driver.console_log(vmid, tail_bytes=given.get("tail_bytes", 65536))).decode()
            case "events":
                return self.events
            case "listening":
                return sorted(ports.read_listening())
            case _:
                return await self.migration(method, vmid, given)
        return None

    async def migration(self, method: str, vmid: Vmid, given: dict[str, Any]) -> Any:
        match method:
            case "expect":
                await self.expect(given)
            case "expect_nothing":
                await self.incoming.aclose()
            case "migrate":
                return await self.migrate(vmid, given)
            case "progress":
                return self.progress
            case "cancel":
                self.tasks[given["request"]].cancel()
            case "statistics":
                found = await live.statistics(self.driver.link, vmid)
                return [found.elapsed_s, found.transferred_bytes, found.downtime_s]
            case _:
                raise AssertionError(method)
        return None

    async def expect(self, given: dict[str, Any]) -> None:
        """What a target prepares."""
        await self.driver.prepare()
        for kind, port in zip(relays.Kind, given["relay_ports"], strict=True):
            path, source = relays.socket_path("m1", kind), NodeUid(given["source"])
            serving = relays.serve(path, address=given["address"], port=port, source=source, pki=Pki())
            await self.incoming.enter_async_context(serving)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await tunnel.to_libvirt(SocketStream(reader, writer))

        server = await asyncio.start_server(accept, given["address"], TUNNEL_PORT)
        self.incoming.callback(server.close)

    async def migrate(self, vmid: Vmid, given: dict[str, Any]) -> list[float]:
        async def connect() -> ByteStream:
            return SocketStream(*await asyncio.open_connection(given["address"], TUNNEL_PORT))

        sockets = live.Relayed(*(relays.socket_path("m1", kind) for kind in relays.Kind))
        destination = live.Destination(
            tunnel=tunnel.socket_path("m1"),
            address=given["address"],
            memory_port=given["memory_port"],
            uid=NodeUid(given["target"]),
            relayed=sockets,
        )
        wish = live.Wish(
            copied=given.get("copied", []),
            shared=given.get("shared", []),
            paths={name: Path(path) for name, path in given.get("paths", {}).items()},
            bandwidth_limit=given.get("bandwidth_limit", 0),
            timeout_s=given.get("timeout_s", 600.0),
        )
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(tunnel.listen(destination.tunnel, connect))
            for path, port in zip((sockets.memory, sockets.disks), given["relay_ports"], strict=True):
                forwarding = relays.forward(
                    path, address=given["address"], port=port, target=NodeUid(given["target"]), pki=Pki()
                )
                await stack.enter_async_context(forwarding)
            done = await live.migrate(
                self.driver.link,
                vmid,
                destination,
                wish,
                on_progress=lambda seen: self.progress.append([seen.fraction, seen.phase]),
            )
        return [done.elapsed_s, done.transferred_bytes]

    async def respond(self, request: dict[str, Any]) -> None:
        try:
            reply: dict[str, Any] = {"result": await self.answer(request["method"], request["given"])}
        except KvorumError as error:
            reply = {"reason": error.reason, "message": error.message, "remedy": error.remedy}
        except asyncio.CancelledError:
            reply = {"reason": "TASK_CANCELLED", "message": "", "remedy": ""}
        except Exception as error:
            reply = {"reason": type(error).__name__, "message": str(error), "remedy": ""}
            raise
        finally:
            print(json.dumps({"id": request["id"], **reply}), flush=True)
            self.tasks.pop(request["id"], None)

    async def collect(self) -> None:
        async for event in self.driver.events():
            self.events.append([event.vmid, event.what.value])

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        background = [asyncio.create_task(self.collect()), asyncio.create_task(self.driver.run())]
        reader = asyncio.StreamReader(limit=2**20)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            request = json.loads(line)
            self.tasks[request["id"]] = asyncio.create_task(self.respond(request))
        for task in background:
            task.cancel()
        await self.driver.close()


asyncio.run(Agent().run())
