"""A real mount against the pure tree: whatever is done through it and beside it, it shows exactly the store, and refuses alike.

What a call should lead to is asked of the pure state before it is made; the mount must answer with that errno, or succeed and
show the tree that the state has then.
"""

# ruff: noqa: PTH102, PTH104, PTH108, PTH116, PTH118, PTH123, PTH208 - the system calls are what is tested

import errno
import importlib.util
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterfs import rules
from clusterfs.commands import Delete, Envelope, Mkdir, Move, Op, Touch, Write
from clusterfs.outcomes import Refusal
from clusterfs.refusals import to_errno
from clusterfs.state import check
from clusterfs.tree import Directory, File, join, lookup, walk

# The store with a mount that the tests of the mount have.
_spec = importlib.util.spec_from_file_location(
    "mounted_store", Path(__file__).parent.parent / "unit" / "clusterfs" / "conftest.py"
)
assert _spec is not None and _spec.loader is not None
_stores = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _stores
_spec.loader.exec_module(_stores)

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
CONTENTS = st.binary(max_size=40) | st.integers(4000, 9000).map(lambda size: b"z" * size)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["write", "append", "patch", "far_write"]), PATHS, CONTENTS),
    st.tuples(st.just("truncate"), PATHS, st.integers(0, 6000)),
    st.tuples(
        st.sampled_from(["mkdir", "unlink", "rmdir", "touch", "read", "far_delete", "far_mkdir"]), PATHS, st.none()
    ),
    st.tuples(st.sampled_from(["rename", "far_move"]), PATHS, PATHS),
)


@contextmanager
def mounted() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as place:
        store = _stores.mount_store(Path(place) / "mnt")
        try:
            yield store
        finally:
            store.mounted.unmount()


def put(path: str, data: bytes, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def wanted(store: Any, op: Op) -> int:
    """The errno that the pure state has for it; 0 for success."""
    refusal = check(store.machine.state, Envelope(op, node=store.replica.uid))
    return to_errno(refusal) if isinstance(refusal, Refusal) else 0


def attempt(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def changed(store: Any, kind: str, parts: tuple[str, ...], argument: Any) -> bytes | None:
    """The content that a file should have after the call, None when it is not there."""
    there = lookup(store.machine.state.root, parts)
    if not isinstance(there, File):
        return argument if kind == "write" else None
    match kind:
        case "append":
            return there.content + argument
        case "patch":
            return argument + there.content[len(argument) :]
        case "truncate":
            return there.content[:argument] + bytes(max(0, argument - len(there.content)))
        case _:
            return bytes(argument)


def near(store: Any, kind: str, parts: tuple[str, ...], argument: Any) -> tuple[Callable[[], object], Op]:
    """The call on the mount, and the command that it comes down to."""
    name = join(parts)
    path = os.path.join(store.root, name)
    missing = Touch(name)
    match kind:
        case "mkdir":
            return lambda: os.mkdir(path), Mkdir(name)
        case "unlink":
            return lambda: os.unlink(path), Delete(name, only="file")
        case "rmdir":
            return Path(path).rmdir, Delete(name, only="directory")
        case "touch":
            return lambda: os.utime(path, (7, 7)), Touch(name, 7)
        case "rename":
            return lambda: os.rename(path, os.path.join(store.root, join(argument))), Move(
                name, join(argument), replace=True
            )
    content = changed(store, kind, parts, argument)
    command = missing if content is None else Write(name, content)
    if isinstance(lookup(store.machine.state.root, parts), Directory):
        command = Write(name, b"")
    match kind:
        case "write":
            return lambda: put(path, argument, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), command
        case "append":
            return lambda: put(path, argument, os.O_WRONLY | os.O_APPEND), command
        case "patch":
            return lambda: put(path, argument, os.O_RDWR), command
        case _:
            return lambda: os.truncate(path, argument), command


def far(kind: str, parts: tuple[str, ...], argument: Any) -> Op:
    name = join(parts)
    match kind:
        case "far_write":
            return Write(name, argument)
        case "far_delete":
            return Delete(name, recursive=True)
        case "far_mkdir":
            return Mkdir(name)
        case _:
            return Move(name, join(argument), replace=True)


def read(path: str) -> int:
    with open(path, "rb") as file:
        file.read()
    return 0


def shows(store: Any) -> str:
    """The first difference between the mount and the tree; empty when there is none."""
    root = store.machine.state.root
    for parts, node in walk(root):
        path = os.path.join(store.root, join(parts))
        if isinstance(node, Directory):
            names = set(os.listdir(path)) - (rules.RESERVED if not parts else set())
            if names != set(node.entries) or not stat.S_ISDIR(os.stat(path).st_mode):
                return f"{path}: {names} for {set(node.entries)}"
            continue
        status = os.stat(path)
        with open(path, "rb") as file:
            content = file.read()
        if content != node.content:
            return f"{path}: {content[:50]!r} for {node.content[:50]!r}"
        if (status.st_size, status.st_mtime) != (len(node.content), node.mtime) or not stat.S_ISREG(status.st_mode):
            return f"{path}: {status} for {len(node.content)}, {node.mtime}"
    return ""


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, min_size=5, max_size=40))
def test_the_mount_shows_the_store_and_refuses_as_the_store(steps: list[tuple[str, Any, Any]]) -> None:
    with mounted() as store:
        for kind, parts, argument in steps:
            if kind.startswith("far_"):
                store.execute(far(kind, parts, argument))
                continue
            if kind == "read":
                # So that the kernel has something to remember.
                attempt(lambda parts=parts: read(os.path.join(store.root, join(parts))))  # type: ignore[misc]
                continue
            call, op = near(store, kind, parts, argument)
            expected = wanted(store, op)
            got = attempt(call)
            end = time.monotonic() + 5
            # The kernel goes by a name that has changed elsewhere until the notice comes; a refused call has changed nothing.
            while got and name_of(got) != name_of(expected) and time.monotonic() < end:
                time.sleep(0.002)
                got = attempt(call)
            assert name_of(got) == name_of(expected), (kind, parts, argument)
        end = time.monotonic() + 5
        while shows(store) and time.monotonic() < end:
            time.sleep(0.002)
        assert shows(store) == ""


def name_of(number: int) -> str:
    return errno.errorcode.get(number, str(number))
