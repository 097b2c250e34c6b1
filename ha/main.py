"""kvorum-ha: the HA manager (active on the Raft leader) and this node's local resource manager.

Waits until the node is in a cluster, works until SIGTERM. Its end touches no guest: the keeper goes on, and the next
kvorum-ha reads from the store where things stand. Only when the host itself goes down do its guests move, stop or
freeze first, as the shutdown policy says; systemd gives it the time for that (TimeoutStopSec of its unit).
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvorum.errors import KvorumError
from kvorum.node import Identity, load_identity

from .shutdown import going_down

if TYPE_CHECKING:
    from .daemon import Rounds

log = logging.getLogger("kvorum-ha")

IDENTITY_POLL_S = 1.0
# Longer than any deadline that datacenter.cfg is likely to set; whoever supervises us has the last word.
SHUTDOWN_S = 3600.0


def main() -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    asyncio.run(serve())
    return 0


async def serve() -> None:
    """Until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    current = Current()
    work = asyncio.create_task(_work(current))
    ended = asyncio.create_task(stopping.wait())
    await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if work.done():
        work.result()  # a broken invariant ends the daemon; whoever supervises it starts it again
    elif current.rounds is not None and (kind := await going_down()):
        log.info("the host goes down (%s)", kind)
        await current.rounds.shut_down(is_reboot=kind == "reboot", longest_s=SHUTDOWN_S)
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work


@dataclass(slots=True)
class Current:
    rounds: "Rounds | None" = None


async def _work(current: Current) -> None:
    from clusterfs.client import StoreClient

    from .daemon import Rounds
    from .hands import Hands
    from .world import KeeperFiles

    while True:
        identity = await _identity()
        log.info("works for %s (%s)", identity.name, identity.uid)
        hands = Hands(identity.name)
        try:
            async with StoreClient(author="ha") as store:
                current.rounds = Rounds(store, identity, hands, KeeperFiles())
                rounds = asyncio.create_task(current.rounds.run())
                try:
                    await _until_changed(identity, rounds)
                finally:
                    current.rounds = None
                    rounds.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await rounds
        finally:
            await hands.close()
        log.info("this node has left its cluster")


async def _identity() -> Identity:
    while True:
        with contextlib.suppress(KvorumError):
            return load_identity()
        await asyncio.sleep(IDENTITY_POLL_S)


async def _until_changed(identity: Identity, rounds: "asyncio.Task[None]") -> None:
    while True:
        done, _ = await asyncio.wait({rounds}, timeout=IDENTITY_POLL_S)
        if done:
            rounds.result()
        try:
            if load_identity() != identity:
                return
        except KvorumError:
            return


if __name__ == "__main__":
    sys.exit(main())
