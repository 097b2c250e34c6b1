"""`kvorum ha status`, `watch`: the manager, the nodes' leases, every resource with its cause, and what is wrong."""

import time
from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli.output import output_option, print_fields, print_json, print_table, short
from kvorum.cli.session import Session

if TYPE_CHECKING:
    from kvorum.v1 import ha_pb2 as pb

POLL_S = 1.0
NODE_COLUMNS = ("node", "state", "lease age", "T", "fence in", "maintenance", "watchdog")
RESOURCE_COLUMNS = ("sid", "requested", "state", "node", "target", "retry in", "cause")


@click.command()
@output_option
@click.pass_obj
def status(session: Session, output: str) -> None:
    """The manager, the nodes' leases, every resource with its cause, and what is wrong.

    \b
    Examples:
      kvorum ha status
      kvorum ha status -o json | jq '.resources[] | select(.state == "error")'
    """
    state = session.client.ha.status(with_reserve=True)
    if output == "json":
        print_json(state)
    else:
        print_status(state)


@click.command()
@click.option("-n", "--count", default=0, metavar="TIMES", help="End after so many changes; 0: until Ctrl-C.")
@click.pass_obj
def watch(session: Session, count: int) -> None:
    """Print a line for everything that changes: nodes, resources, arming.

    \b
    Example:
      kvorum ha watch
    """
    seen: dict[str, str] = {}
    shown = 0
    while True:
        for name, told in lines_of(session.client.ha.status()).items():
            if seen.get(name) != told:
                seen[name] = told
                click.echo(f"{time.strftime('%H:%M:%S')}  {name}: {told}")
                shown += 1
                if shown == count:
                    return
        time.sleep(POLL_S)


def lines_of(state: "pb.GetHaStatusResponse") -> dict[str, str]:
    """What a person would want to be told when it changes; nothing that only grows older."""
    found = {"manager": short(state.manager_node) or "none", "HA": state.disarm.state or "armed"}
    found |= {short(node.name): node.state for node in state.nodes}
    for resource in state.resources:
        where = " -> ".join(short(name) for name in (resource.node, resource.target) if name)
        found[resource.sid] = f"{resource.state or 'new'} on {where or 'no node'} ({resource.cause})"
    found |= {f"problem {number}": text for number, text in enumerate(state.problems, start=1)}
    return found


def print_status(state: "pb.GetHaStatusResponse") -> None:
    print_fields(
        {
            "quorum": "yes" if state.quorate else "NO: nothing is started or fenced until there is a majority",
            "manager": short(state.manager_node),
            "profile": told_profile(state.profile),
            "HA": told_arming(state),
            **({"reserve": told_reserve(state.reserve)} if state.HasField("reserve") else {}),
        }
    )
    click.echo()
    print_table([node_row(node) for node in state.nodes], columns=NODE_COLUMNS)
    click.echo()
    print_table([resource_row(resource) for resource in state.resources], columns=RESOURCE_COLUMNS)
    for problem in state.problems:
        click.echo(f"problem: {problem}", err=True)
    for resource in state.resources:
        if resource.state in ("error", "fence") and resource.remedies:
            click.echo(f"{resource.sid}: {'; '.join(resource.remedies)}", err=True)


def told_profile(profile: "pb.HaProfile") -> str:
    if not profile.name:
        return "unknown: the settings cannot be read"
    return (
        f"{profile.name}: sits out {profile.tolerates_seconds:g} s; "
        f"a dead node's guests start elsewhere after T = {profile.takeover_after_seconds:.1f} s"
    )


def told_reserve(reserve: "pb.HaReserve") -> str:
    """Whether any so many nodes may die, and the worst of what would follow."""
    whichever = "any node" if reserve.nodes == 1 else f"any {reserve.nodes} nodes"
    if reserve.loss_count:
        more = f" (and {reserve.loss_count - 1} more such losses)" if reserve.loss_count > 1 else ""
        return f"NOT for {whichever}: {reserve.losses[0].message}{more}"
    if not reserve.survived:
        return f"the {reserve.looked_at} fullest of {reserve.every} sets of {reserve.nodes} nodes may die"
    return f"{whichever} may die: their guests find room on the others"


def told_arming(state: "pb.GetHaStatusResponse") -> str:
    if not state.HasField("disarm"):
        return "armed"
    left = told_seconds(state.disarm.arms_in_seconds)
    return f"{state.disarm.state.upper()} ({state.disarm.mode}): arms itself in {left}; {state.disarm.cause}"


def told_seconds(seconds: float) -> str:
    """As a person says it: 45 s, 12 min, 3 h 5 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def node_row(node: "pb.HaNode") -> dict[str, object]:
    return {
        "node": short(node.name),
        "state": node.state,
        "lease age": node.lease_age_seconds if node.lease_age_seconds >= 0 else "",
        "T": node.takeover_after_seconds if node.takeover_after_seconds >= 0 else "",
        "fence in": node.fence_in_seconds if node.fence_in_seconds >= 0 else "",
        "maintenance": "yes" if node.maintenance or node.mode == "maintenance" else "",
        "watchdog": node.watchdog,
    }


def resource_row(resource: "pb.HaResource") -> dict[str, object]:
    from kvorum.v1 import ha_pb2 as pb

    return {
        "sid": resource.sid,
        "requested": pb.HaRequestState.Name(resource.request_state).removeprefix("HA_REQUEST_STATE_").lower(),
        "state": resource.state,
        "node": short(resource.node),
        "target": short(resource.target),
        "retry in": told_seconds(resource.retry_in_seconds) if resource.retry_in_seconds >= 0 else "",
        "cause": resource.cause,
    }


COMMANDS = (status, watch)
