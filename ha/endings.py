"""Says at once when a process of a guest ends: the kernel is asked to tell, nothing is polled.

A crash on a node that lives then costs the guest its start and no more. Which process belongs to whom is for the scan
that finds them.
"""

import asyncio
import os
from collections.abc import Callable, Iterable

from .keeper.processes import Found

# More processes of guests than this on one node are looked at in each round only.
MAX_WATCHED = 512


class Endings:
    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        # By pid and start time: a descriptor that is readable once the process has ended.
        self._handles: dict[tuple[int, int], int] = {}

    def watch(self, processes: Iterable[Found]) -> None:
        """These and no others."""
        wanted = {(process.pid, process.start_time) for process in processes}
        for key in set(self._handles) - wanted:
            self._drop(key)
        for key in sorted(wanted - set(self._handles))[: MAX_WATCHED - len(self._handles)]:
            try:
                handle = os.pidfd_open(key[0])
            except OSError:
                # It ended between the scan and now; the next scan misses it.
                self._on_end()
                continue
            self._handles[key] = handle
            asyncio.get_running_loop().add_reader(handle, self._ended, key)

    def close(self) -> None:
        for key in list(self._handles):
            self._drop(key)

    def _ended(self, key: tuple[int, int]) -> None:
        self._drop(key)
        self._on_end()

    def _drop(self, key: tuple[int, int]) -> None:
        handle = self._handles.pop(key, None)
        if handle is not None:
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)
