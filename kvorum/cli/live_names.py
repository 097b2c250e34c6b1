"""Names that the cluster knows, for the shell's completion: nodes, resources, rules. Silent when nobody answers."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli.session import Session
from kvorum.errors import KvorumError

if TYPE_CHECKING:
    from kvorum.client import Client

# Somebody waits with a finger on the key.
PATIENCE_S = 2.0

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _names(ask: "Callable[[Client], Iterable[str]]") -> Complete:
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        options = ctx.find_root().params
        session = ctx.obj or Session(
            target=options.get("target") or "", credentials=options.get("credentials") or "", timeout_s=PATIENCE_S
        )
        try:
            found = sorted(set(ask(session.client)))
        except KvorumError:
            return []
        finally:
            if ctx.obj is None:
                session.close()
        return [name for name in found if name.startswith(incomplete)]

    return complete


def _guests(client: "Client") -> Iterable[str]:
    from kvorum.v1 import guest_pb2 as pb

    for guest in client.guests.list().guests:
        yield f"{'vm' if guest.kind == pb.GUEST_KIND_VM else 'ct'}:{guest.vmid}"


nodes = _names(lambda client: (member.name.rpartition("/")[2] for member in client.cluster.nodes()))
resources = _names(lambda client: (resource.sid for resource in client.ha.resources()))
# What is not under HA yet.
guests = _names(lambda client: set(_guests(client)) - {resource.sid for resource in client.ha.resources()})
rules = _names(lambda client: (rule.id for rule in client.ha.rules().rules))
