"""Whether the cluster bears the loss of some nodes, and whether it still does with one resource more.

The look itself is `ha.reserve`'s. Nothing is changed here; who asks decides what follows from the answer.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec

from ha.reserve import Loss, Survey, survey, worse
from ha.resources import Resource
from ha.rules import RULES_CFG, compile_rules, parse_rules
from ha.status import Service, State
from ha.view import View
from kvorum.errors import ConfigError, InvalidInput, Refused
from kvorum.ids import NodeName, Sid

from .ha_picture import Picture

# Of which the loss at the same time is looked at; there are too many sets of more.
MAX_NODES = 3
# Of guests in a sentence.
_TOLD = 5


@dataclass(frozen=True, slots=True)
class Admission:
    """What the cluster bears no longer with the new resource, in sentences."""

    warnings: tuple[str, ...] = ()


def reserve_of(picture: Picture, size: int = 0) -> Survey:
    """0: as many nodes as the policy reserves for, at least one and at most MAX_NODES. Raises InvalidInput."""
    wanted = size or max(1, picture.view.options.policy.reserve_nodes)
    if not 1 <= wanted <= MAX_NODES and size:
        raise InvalidInput(f"{size} nodes at once are not looked at", field="any_nodes", remedy=f"1 to {MAX_NODES}")
    return survey(picture.view, min(wanted, MAX_NODES), picture.keeps_quorum_without)


def admit(picture: Picture, sid: Sid, *, is_forced: bool) -> Admission:
    """Of a guest that HA shall keep running. Raises Refused when the policy's reserve would not be there any more."""
    if picture.view.resources is None or sid not in picture.view.configs or sid in picture.view.resources:
        return Admission()
    before = reserve_of(picture)
    after = survey(with_resource(picture, sid), before.size, picture.keeps_quorum_without, new=(sid,))
    found = tuple(told(loss) for loss in worse(before, after))
    reserved = picture.view.options.policy.reserve_nodes
    if found and reserved and not is_forced:
        many = "node" if before.size == 1 else "nodes"
        capped = f"={reserved}, of which at most {MAX_NODES} at once are looked at" if reserved > MAX_NODES else ""
        raise Refused(
            f"with {sid} the reserve for the loss of {before.size} {many} (crs: reserve-nodes{capped}) would be gone: "
            f"{found[0]}",
            remedy="make room or loosen a rule; or add it all the same, with --force",
        )
    return Admission(found)


def with_resource(picture: Picture, sid: Sid) -> View:
    """As if it ran under HA already, where its file lies."""
    view = picture.view
    entry = Service(state=State.started, node=view.configs[sid].node, uid="", incarnation=0, running=1)
    status = msgspec.structs.replace(view.status, service_status={**view.status.service_status, sid: entry})
    resources = {**(view.resources or {}), sid: Resource(sid)}
    rules = view.rules
    with suppress(ConfigError):  # then those that counted before go on
        rules = compile_rules(parse_rules(picture.reading.content(RULES_CFG)), resources, view.nodes)
    return replace(view, status=status, resources=resources, rules=rules)


def told(loss: Loss) -> str:
    names = _listed(loss.nodes, " and ")
    if not loss.keeps_quorum:
        return f"without {names} there is no majority: nothing starts elsewhere"
    who = _listed([one.sid for one in loss.homeless[:_TOLD]])
    more = f" and {len(loss.homeless) - _TOLD} more" if len(loss.homeless) > _TOLD else ""
    return f"without {names}, {who}{more} would start nowhere: {loss.homeless[0].why}"


def _listed(names: Sequence[NodeName] | Sequence[Sid], last: str = ", ") -> str:
    return last.join(names) if len(names) < 3 else ", ".join(names)
