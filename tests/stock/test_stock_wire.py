"""Arbitrary code from the wire: what pysyncobj 0.3.17 does with a frame of anybody, and what ours does with the same."""

import contextlib
import os
import socket
import struct
import time
import zlib
from pathlib import Path

import pysyncobj.pickle
from pysyncobj import SyncObj, SyncObjConf
from raft_cluster import Cluster, free_port


class MakesDirectory:
    """Whoever decodes it makes a directory."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self._path,)


def hostile_frame(path: Path) -> bytes:
    data = zlib.compress(pysyncobj.pickle.dumps(MakesDirectory(path)), 3)
    return struct.pack("i", len(data)) + data


def test_stock_a_frame_of_a_stranger_runs_its_code(tmp_path: Path) -> None:
    port = free_port()
    conf = SyncObjConf(autoTick=False, bindAddress=f"127.0.0.1:{port}")
    node = SyncObj(f"127.0.0.1:{port}", ["127.0.0.1:1"], conf=conf)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(hostile_frame(tmp_path / "owned"))
            deadline = time.monotonic() + 10
            while not (tmp_path / "owned").exists() and time.monotonic() < deadline:
                node.doTick(0.01)
    finally:
        node._doDestroy()
    assert (tmp_path / "owned").is_dir()


def test_the_same_frame_does_nothing_to_ours(tmp_path: Path, cluster: Cluster) -> None:
    (uid,) = cluster.found(1)
    cluster.leader()
    address = cluster.addresses[uid]
    with socket.create_connection((address.host, address.port), timeout=5) as stranger:
        stranger.sendall(hostile_frame(tmp_path / "owned"))
        stranger.settimeout(10)
        # The door may be shut softly or hard.
        with contextlib.suppress(ConnectionError):
            while stranger.recv(4096):
                pass
    assert not (tmp_path / "owned").exists()
    assert cluster.replicas[uid].propose(b"goes on", deadline_s=5) == 1
