"""One file rewritten on one node and read on the others, through real mounts: never empty, never old bytes with new ones."""

import asyncio
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

from cluster.store_daemons import Node, nodes, read_eventually, write

__all__ = ["nodes"]

# How long is written; KVORUM_MIX_S=3600 for a night.
WRITING_S = float(os.environ.get("KVORUM_MIX_S", "6"))
FIRST = b"0" * 100

# Reads piecewise, as a program with a small buffer does, until its input ends; prints how many times and what was seen.
READER = """
import os, select, sys
path, sizes, reads, newest = sys.argv[1], set(), 0, 0
while not select.select([sys.stdin], [], [], 0)[0]:
    descriptor = os.open(path, os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    data = b""
    while chunk := os.read(descriptor, 1000):
        data += chunk
    os.close(descriptor)
    reads += 1
    sizes.add(len(data))
    assert data, f"empty at read {reads}"
    assert data == data[:1] * len(data), f"a mix at read {reads}: {sorted(set(data))}, {len(data)} bytes"
    assert len(data) == size, f"{size} bytes were shown and {len(data)} read at read {reads}"
print(reads, len(sizes))
"""


def version(number: int) -> bytes:
    """Each of another length and letter than those before and after; shorter and longer ones in turn."""
    return bytes([65 + number % 26]) * (1 + number * 7919 % 9000)


def rewrite(path: Path, number: int) -> bytes:
    """In each way in which programs save: truncating, beside it and renamed over it, in place and cut."""
    content = version(number)
    if number % 3 == 0:
        path.write_bytes(content)
    elif number % 3 == 1:
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.rename(path)
    else:
        with path.open("r+b", buffering=0) as file:
            file.write(content)
            file.truncate(len(content))
    return content


def rewrite_for(path: Path, seconds: float) -> bytes:
    end = time.monotonic() + seconds
    for number in itertools.count(1):
        content = rewrite(path, number)
        if time.monotonic() > end and number > 20:
            return content
    raise AssertionError


async def test_no_reader_on_another_node_sees_an_empty_file_or_a_mix_of_two_versions(nodes: list[Node]) -> None:
    """Two readers on each node, one of the nodes being the writer's own; the writer is on a follower as likely as not."""
    writer = nodes[1]
    await write(writer.mount / "f", FIRST)
    for node in nodes:
        await read_eventually(node, "f", FIRST)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(node.mount / "f")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in nodes
        for _reader in range(2)
    ]
    try:
        last = await asyncio.to_thread(rewrite_for, writer.mount / "f", WRITING_S)
        for node in nodes:
            await read_eventually(node, "f", last)
        for reader in readers:
            out, err = await asyncio.to_thread(reader.communicate, "\n", 20)
            assert reader.returncode == 0, err
            reads, sizes = map(int, out.split())
            assert reads > 20
            assert sizes > 3
    finally:
        for reader in readers:
            if reader.poll() is None:
                reader.kill()
                reader.wait()
