"""A small agent around the LXC driver, run inside a test's host: one JSON request a line in, one answer a line out.

It serves gRPC meanwhile, as the real agent does: starting containers from a process with gRPC's threads is part of the test.
"""

import asyncio
import base64
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc.aio
import lxc

from agent.guests.driver import Guest, Observed, Volume
from agent.guests.lxc import LxcDriver
from agent.guests.template import unpack_template
from agent.processes import run
from kvorum.config.guest import GuestConfig
from kvorum.errors import KvorumError
from kvorum.ids import NodeName, Vmid

DIRECTORY = Path(sys.argv[1])
LXC_PATH = DIRECTORY / "lxc"
DRIVER = LxcDriver(lxc_path=LXC_PATH, log_directory=DIRECTORY / "log")


def guest_of(vmid: int, config: str, mounts: dict[str, str]) -> Guest:
    path = DIRECTORY / "images" / str(vmid)
    root = Volume("rootfs", path, "raw" if path.is_file() else "subvol")
    volumes = [root, *(Volume(key, Path(at), "raw" if at.endswith(".raw") else "subvol") for key, at in mounts.items())]
    return Guest(Vmid(vmid), GuestConfig.parse(config), tuple(volumes), NodeName("n1"), 1)


def told(observed: Observed) -> dict[str, Any]:
    return {"state": observed.state.value, "pid": observed.pid, "uptime_s": observed.uptime_s}


async def answer(method: str, vmid: int, arguments: dict[str, Any]) -> Any:
    match method:
        case "unpack":
            root = DIRECTORY / "images" / str(vmid)
            root.parent.mkdir(exist_ok=True)
            if size_bytes := arguments.get("image_bytes"):
                root.touch()
                os.truncate(root, size_bytes)
            else:
                root.mkdir()
            config = GuestConfig.parse(arguments["config"])
            await unpack_template(DIRECTORY / "busybox.tar.gz", root, vmid=Vmid(vmid), config=config)
        case "start":
            await DRIVER.start(guest_of(vmid, arguments["config"], arguments.get("mounts", {})))
        case "shutdown":
            await DRIVER.shutdown(Vmid(vmid), timeout_s=arguments["timeout_s"])
        case "stop":
            await DRIVER.stop(Vmid(vmid))
        case "observe":
            return told(await DRIVER.observe(Vmid(vmid)))
        case "observe_all":
            return {str(key): told(value) for key, value in (await DRIVER.observe_all()).items()}
        case "traffic":
            return {str(key): asdict(value) for key, value in (await DRIVER.traffic()).items()}
        case "console_log":
            content = await DRIVER.console_log(Vmid(vmid), tail_bytes=arguments["tail_bytes"])
            return base64.b64encode(content).decode()
        case "forget":
            await DRIVER.forget(Vmid(vmid))
        case "exec":
            command = ["lxc-attach", "--name", str(vmid), "--lxcpath", str(LXC_PATH), "--clear-env", "--"]
            done = await run([*command, *arguments["argv"]], timeout_s=20, ok_codes=range(-64, 256))
            return [done.returncode, done.text]
        case "witness":
            return lxc.Container(str(vmid), str(LXC_PATH)).state
        case "start_and_cancel":
            work = asyncio.ensure_future(DRIVER.start(guest_of(vmid, arguments["config"], {})))
            await asyncio.sleep(arguments["after_s"])
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            return work.cancelled()
    return None


async def serve() -> None:
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{DIRECTORY}/agent-{os.getpid()}.sock")
    await server.start()
    print(json.dumps({"pid": os.getpid()}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        request = json.loads(line)
        try:
            reply = {"result": await answer(request["method"], request["vmid"], request["arguments"])}
        except KvorumError as error:
            reply = {"error": [type(error).__name__, error.message, error.remedy]}
        print(json.dumps(reply), flush=True)
    await server.stop(0)


asyncio.run(serve())
