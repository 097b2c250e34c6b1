"""kvorum-agent: everything that touches this host, and the API of the cluster.

Starts in any order with the other processes: what is not there yet is waited for, and said once. SIGTERM ends it cleanly;
guests are separate processes and go on.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from kvorum.errors import KvorumError
from kvorum.node import AGENT_PORT

from .context import AgentContext, Paths
from .tls_version import require_tls_1_3

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    os.umask(0o022)
    # Read when gRPC is imported: each refused handshake would be a line of C++ in our log otherwise.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    require_tls_1_3()
    try:
        asyncio.run(run(options))
    except KvorumError as error:
        log.error("%s%s", error, f" ({error.remedy})" if error.remedy else "")
        return 1
    return 0


async def run(options: argparse.Namespace) -> None:
    """Until SIGTERM or SIGINT."""
    from agent.assembly import Agent
    from agent.guests import accel
    from agent.services import guest, ha, migration, task
    from agent.tasks import TaskRunner
    from clusterfs.client import StoreClient

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    paths = Paths()
    agent = Agent(paths=paths, port=options.port, listen=options.listen, probe=lambda: accel.choose(options.accel))
    store = StoreClient(paths.clusterfs_socket)
    tasks = TaskRunner(agent.node_name, paths.tasks)
    context = AgentContext(
        store=store,
        peers=agent.core.peers,
        identity=lambda: agent.identity,
        tasks=tasks,
        background=agent.background,
        paths=paths,
        port=options.port,
        acceleration=lambda: agent.acceleration,
    )
    for room in (task, guest, ha, migration):
        room.register(agent.services, context)
    try:
        await agent.start()
        await stopping.wait()
        log.info("ending")
    finally:
        await tasks.close()
        await agent.stop()
        await store.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvorum-agent", description="The agent of a node of Kvorum.")
    parser.add_argument("--port", type=int, default=AGENT_PORT, help="TCP port of the API (default: %(default)s)")
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="also serve the API on this address, besides the node's own and 127.0.0.1; may be repeated",
    )
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="what guests run on")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


if __name__ == "__main__":
    sys.exit(main())
