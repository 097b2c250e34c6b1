"""Making one cluster out of fresh nodes, by the very commands that people use. No API calls here."""

import re
from collections.abc import Callable, Sequence

from kvorum.errors import CommandFailed, KvorumError
from lab.layout import SHARED
from lab.node import Node

_CALL_TIMEOUT_S = 90.0
_STORAGE_CFG = "/etc/kvorum/storage.cfg"
_TOKEN = re.compile(r"\bkv1\.\S+")


def form(nodes: Sequence[Node], say: Callable[[str], None], *, witness: bool = False) -> None:
    """`witness`: the last node joins as one. Raises the error of the step that failed, named; the nodes stay up for a look."""
    first, *others = nodes
    for node in nodes:
        node.wait_ready(["clusterfs", "agent"])
    say("clusterfs and agent answer on each")
    _kvorum(first, "cluster", "init", first.layout.lab.name, "--address", first.address)
    say(f"{first.name} founded the cluster")
    for node in others:
        token = find_token(_kvorum(first, "cluster", "token"))
        # By standard input, as the command advises: arguments show in process lists.
        role = ["--witness"] if witness and node is nodes[-1] else []
        _kvorum(node, "cluster", "join", *role, first.address, "-", stdin=token)
        say(f"{node.name} joined")
    add_shared_storage(first)
    say(f"storage 'shared' is {SHARED}")


def find_token(output: str) -> str:
    """The join token in what `kvorum cluster token` printed. Raises CommandFailed."""
    match = _TOKEN.search(output)
    if match is None:
        raise CommandFailed("'kvorum cluster token' printed no token", remedy=f"it said: {output.strip()[:200]!r}")
    return match[0]


def add_shared_storage(node: Node) -> None:
    """Through the mount, as an administrator with an editor would."""
    present = node.run(["cat", _STORAGE_CFG]).stdout
    node.run(["tee", _STORAGE_CFG], stdin=with_shared_storage(present))


def with_shared_storage(storage_cfg: str) -> str:
    """storage.cfg with `dir: shared`; as it was when it has one."""
    if re.search(r"(?m)^dir: shared$", storage_cfg):
        return storage_cfg
    section = f"dir: shared\n\tpath {SHARED}\n\tcontent images,rootdir,vztmpl,iso,backup,snippets\n\tshared 1\n"
    return f"{storage_cfg.rstrip()}\n\n{section}" if storage_cfg.strip() else section


def _kvorum(node: Node, *words: str, stdin: str = "") -> str:
    command = ["kvorum", "--timeout", str(_CALL_TIMEOUT_S), *words]
    try:
        return node.run(command, stdin=stdin, timeout_s=_CALL_TIMEOUT_S + 30.0).stdout
    except KvorumError as error:
        raise CommandFailed(
            f"cannot form the cluster: {error.message}",
            remedy=f"look at {node.log('agent')} and {node.log('clusterfs')}, or use --no-join",
            details=error.details,
        ) from error
