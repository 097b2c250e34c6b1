"""`make fault`: a cluster of real daemons under random faults, while clients write; then a verdict over all they saw.

    make fault                       10 minutes, three nodes
    make fault MINUTES=1 NODES=5 SEED=7

Needs root. Everything happens in mount, network and process namespaces of its own: when it ends, however it ends, the kernel
takes away the daemons, mounts, loop devices and firewall rules with them.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
for place in (HERE, HERE.parent, HERE.parents[1]):
    sys.path.insert(0, str(place))

from fault_clients import KEYS, ApiClient, MountClient, Record, idle_faults, value_in  # noqa: E402
from fault_disk import why_not  # noqa: E402
from fault_nodes import FaultNode, Network, found  # noqa: E402
from fault_strikes import KINDS, Strikes  # noqa: E402
from linearizable import Operation, fault_of  # noqa: E402

from kvorum import errors  # noqa: E402

RECOVERY_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None, help="of the order of faults and operations")
    parser.add_argument("--only", choices=KINDS, default=None, help="this kind of fault and no other")
    parser.add_argument("--inside", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    if options.inside is None:
        return _in_namespaces(options, seed)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=20)
    kinds = (options.only,) if options.only else KINDS
    return asyncio.run(trial(options.inside, options.nodes, options.minutes * 60, seed, kinds))


def _in_namespaces(options: argparse.Namespace, seed: int) -> int:
    with tempfile.TemporaryDirectory(prefix="kvorum-fault-") as directory:
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
        command = [sys.executable, str(Path(__file__).resolve()), "--inside", directory]
        command += ["--minutes", str(options.minutes), "--nodes", str(options.nodes), "--seed", str(seed)]
        command += ["--only", options.only] if options.only else []
        child = subprocess.Popen([*unshare, *command])
        try:
            return child.wait()
        except BaseException:
            # The first process of the namespaces takes all others along.
            child.kill()
            child.wait()
            raise


async def trial(directory: Path, count: int, seconds: float, seed: int, kinds: Sequence[str]) -> int:
    print(f"{count} nodes, {seconds / 60:g} minutes of faults, seed {seed}", flush=True)
    luck = random.Random(seed)
    if "disk slow" in kinds and (why := why_not()):
        kinds = [kind for kind in kinds if kind != "disk slow"]
        print(f"LEFT OUT: disk slow: {why}", flush=True)
    if not kinds:
        return 1
    nodes = await found(directory, count)
    try:
        await nodes[0].client.write("faults/kept", directory=True, parents=True)
        for key in KEYS:
            await nodes[0].client.write(key, b"first 0\n")
        await asyncio.sleep(1)
        record, strikes = Record(), Strikes(nodes, Network(nodes), luck, kinds)
        clients: list[ApiClient | MountClient] = [
            kind(f"{node.identity.name}{letter}", node, record, random.Random(luck.random()))
            for node in nodes
            for kind, letter in ((ApiClient, "a"), (ApiClient, "b"), (MountClient, "m"))
        ]
        began = time.monotonic()
        first = [_first(key, began) for key in KEYS]
        await _under_fire(clients, strikes, seconds)
        ended = time.monotonic()
        doubts = [*strikes.faults(), *idle_faults(record, [client.name for client in clients], ended - began)]
        gap = record.longest_gap_s(began, ended)
        print(f"longest time without an acknowledged write: {gap:.1f} s")
        if gap > RECOVERY_S:
            doubts.append(f"no write was acknowledged for {gap:.0f} s")
        doubts += [f"{node.identity.name} says that something is broken" for node in nodes if _is_troubled(node.log)]
        return await _judge(nodes, record, strikes, first, doubts)
    finally:
        for node in nodes:
            with suppress(Exception):
                await node.client.close()
            if _is_troubled(node.log):
                print(f"--- {node.identity.name} said, among others:\n{_troubles(node.log)}")
            with suppress(OSError, subprocess.SubprocessError):
                node.clean()
        # Threads may hang in calls to a mount that is gone; nothing of theirs is needed.
        sys.stdout.flush()


def _is_troubled(text: str) -> bool:
    return "Traceback" in text or "CRITICAL" in text


def _troubles(text: str) -> str:
    lines = text.splitlines()
    places = [number for number, line in enumerate(lines) if "Traceback" in line or "CRITICAL" in line]
    return "\n".join("\n".join(lines[max(0, place - 2) : place + 14]) for place in places[:3])


def _first(key: str, began: float) -> Operation:
    return Operation(key, True, "first", began - 2, began - 1, who="the beginning")


async def _under_fire(clients: Sequence[ApiClient | MountClient], strikes: Strikes, seconds: float) -> None:
    stop_strikes, stop_clients = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(stop_clients))
        striking = group.create_task(strikes.run(stop_strikes))
        await asyncio.sleep(seconds)
        stop_strikes.set()
        await striking
        await strikes.undo()
        # The clients go on while everything is well again: what they see now counts as well.
        await asyncio.sleep(4)
        stop_clients.set()
    for client in clients:
        await client.close()


async def _judge(
    nodes: list[FaultNode], record: Record, strikes: Strikes, first: list[Operation], doubts: list[str]
) -> int:
    faults = [*record.torn, *doubts]
    recovered = await _recover(nodes)
    if not recovered:
        faults.append(f"not every node was well again within {RECOVERY_S:g} s")
    lost: dict[str, list[str]] = {}
    views = {}
    if recovered:
        for node in nodes:
            views[node.identity.name] = await _view(node)
            lost[node.identity.name] = await _missing(node, record)
        for number, node in enumerate(nodes):
            last = ApiClient(f"last{number}", node, record, random.Random(0))
            for key in KEYS:
                if not await last.read(key):
                    faults.append(f"{node.identity.name} does not answer a read of {key}")
            await last.close()
    missing = sorted({name for names in lost.values() for name in names})
    faults += [f"{name} was acknowledged and is lost" for name in missing[:10]]
    if len({tuple(view) for view in views.values()}) > 1:
        faults.append("the replicas differ")
    history = [*first, *record.history]
    verdict = fault_of(history)
    if verdict:
        faults.append(f"not linearizable: {verdict}")
    print(
        f"faults: {sum(strikes.struck.values())} ({', '.join(f'{n} x {k}' for k, n in strikes.struck.most_common())})"
    )
    print(f"operations: {', '.join(f'{n} {k}' for k, n in record.operations.most_common())}")
    print(
        f"acknowledged writes: {len(record.acknowledged_at)}, of {len(record.kept)} in files of their own lost: {len(missing)}"
    )
    print(f"replicas: {'equal' if views and len({tuple(v) for v in views.values()}) == 1 else 'NOT equal'}")
    print(f"history of {len(history)} operations: {verdict or 'linearizable'}")
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


async def _recover(nodes: list[FaultNode]) -> bool:
    """Everybody ready, with a leader, and writing."""
    until = time.monotonic() + RECOVERY_S
    for number, node in enumerate(nodes):
        while True:
            with suppress(errors.KvorumError, OSError):
                status = await node.client.status(deadline_s=2)
                if status.ready and status.quorate and status.mounted:
                    await node.client.write(f"faults/last{number}", b"x", deadline_s=5)
                    break
            if time.monotonic() > until:
                print(f"{node.identity.name} is not well: running={node.is_running}\n{node.log[-1500:]}")
                return False
            await asyncio.sleep(0.2)
    return True


async def _view(node: FaultNode) -> list[tuple[str, int, bytes]]:
    """All of the tree, after all that was acknowledged."""
    await node.client.read(KEYS[0], linearizable=True, deadline_s=10)
    listing = await node.client.list(recursive=True, with_content=True, deadline_s=30)
    return [(entry.path, entry.version, entry.content) for entry in listing]


async def _missing(node: FaultNode, record: Record) -> list[str]:
    listing = await node.client.list("faults/kept", with_content=True, deadline_s=30)
    held = {value_in(entry.content) for entry in listing}
    return [name for name in record.kept if name not in held]


if __name__ == "__main__":
    try:
        code = main()
    except SystemExit:
        raise
    except BaseException:
        # Not past `os._exit`: threads that hang in a dead mount would keep the process, and the verdict, waiting.
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)
