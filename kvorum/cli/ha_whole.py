"""`kvorum ha maintenance`, `disarm`, `arm`, `profile`: what concerns nodes and HA as a whole."""

import re
import time
from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli import live_names
from kvorum.cli.ha_moves import finish
from kvorum.cli.ha_status import told_seconds
from kvorum.cli.output import output_option, print_json, print_table, short
from kvorum.cli.session import Session
from kvorum.errors import InvalidInput, Timeout

if TYPE_CHECKING:
    from kvorum.client.ha import HaApi
    from kvorum.v1 import ha_pb2 as pb

POLL_S = 0.5
UNITS_S = {"s": 1, "m": 60, "h": 3600, "": 1}
PLAN_COLUMNS = ("sid", "node", "target", "why")
PROFILE_COLUMNS = ("profile", "chosen", "sits out", "pause", "kill", "reset", "T")


@click.group()
def maintenance() -> None:
    """Empty a node of HA guests, and let it have them again.

    \b
    Examples:
      kvorum ha maintenance enable n2
      kvorum ha maintenance disable n2
    """


@maintenance.command()
@click.argument("node", shell_complete=live_names.nodes)
@click.option("--dry-run", is_flag=True, help="Only show what would go where.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until no HA guest runs there.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@click.pass_obj
def enable(session: Session, node: str, dry_run: bool, yes: bool, wait: bool, timeout_s: float) -> None:
    """Move all HA guests away from NODE, and put none there: shows the plan first.

    VMs move live, containers stop for it. What cannot move stays, with its reason, until it can.

    \b
    Examples:
      kvorum ha maintenance enable n2 --dry-run
      kvorum ha maintenance enable n2 --yes --no-wait
    """
    api = session.client.ha
    print_plan(api.plan_maintenance(node), node)
    if dry_run:
        return
    if not yes:
        click.confirm(f"Put {node} into maintenance?", abort=True)
    finish(session, api.set_maintenance(node, enabled=True), wait=True)
    if wait:
        _wait_empty(api, node, timeout_s)


@maintenance.command()
@click.argument("node", shell_complete=live_names.nodes)
@click.pass_obj
def disable(session: Session, node: str) -> None:
    """Let NODE take guests again; those that left it for the maintenance come back if they may (failback).

    \b
    Example:
      kvorum ha maintenance disable n2
    """
    finish(session, session.client.ha.set_maintenance(node, enabled=False), wait=True)


def print_plan(plan: "pb.PlanHaMaintenanceResponse", node: str) -> None:
    if plan.outcomes:
        print_table([outcome_row(outcome) for outcome in plan.outcomes], columns=PLAN_COLUMNS)
    else:
        click.echo(f"no HA guest is on {node}")
    if plan.unmanaged:
        click.echo(f"not under HA, so they stay on {node}: {', '.join(plan.unmanaged)}", err=True)


def outcome_row(outcome: "pb.HaOutcome") -> dict[str, object]:
    return {
        "sid": outcome.sid,
        "node": short(outcome.node),
        "target": short(outcome.target_node) or "stays",
        "why": outcome.cause,
    }


def _wait_empty(api: "HaApi", node: str, timeout_s: float) -> None:
    """Says of each guest when it has left. Raises Timeout with what is still there, and why."""
    deadline = time.monotonic() + timeout_s
    waiting: dict[str, str] = {}
    while True:
        there = {one.sid: one.cause for one in api.status().resources if is_there(one, node)}
        for sid in sorted(set(waiting) - set(there)):
            click.echo(f"{sid} has left", err=True)
        for sid, cause in there.items():
            if waiting.get(sid) != cause:
                click.echo(f"{sid}: {cause}", err=True)
        waiting = there
        if not there:
            click.echo(f"no HA guest runs on {node}")
            return
        if time.monotonic() > deadline:
            left = "; ".join(f"{sid}: {cause}" for sid, cause in there.items())
            raise Timeout(
                f"{node} still has guests: {left}",
                remedy=f"it stays in maintenance and they go when they can; 'kvorum ha maintenance disable {node}' ends it",
            )
        time.sleep(POLL_S)


def is_there(resource: "pb.HaResource", node: str) -> bool:
    return short(resource.node) == node and resource.state not in ("stopped", "error", "")


@click.command()
@click.option("--for", "for_text", required=True, metavar="TIME", help="30m, 2h, 90s; HA arms itself again after that.")
@click.option("--mode", type=click.Choice(["freeze", "ignore"]), default="freeze", show_default=True,
              help="As in Proxmox VE; either way guests run on untouched.")  # fmt: skip
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until no node holds a lease.")
@click.option("--timeout", "timeout_s", default=120.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@click.pass_obj
def disarm(session: Session, for_text: str, mode: str, wait: bool, timeout_s: float) -> None:
    """Fence nobody, recover nothing, feed no watchdog, for a while: before work on the network that all nodes notice.

    Guests run on. A node that dies meanwhile takes its guests with it until HA is armed again.

    \b
    Examples:
      kvorum ha disarm --for 30m
      kvorum ha arm                          when the work is done earlier
    """
    api = session.client.ha
    finish(session, api.disarm(for_s=parse_time(for_text), mode=mode), wait=True)
    deadline = time.monotonic() + timeout_s
    seen = ""
    while wait:
        state = api.status()
        if state.disarm.cause != seen:
            seen = state.disarm.cause
            click.echo(f"{state.disarm.state}: {seen}", err=True)
        if state.disarm.state == "disarmed" and all(node.lease_age_seconds < 0 for node in state.nodes):
            click.echo(f"HA is disarmed, and arms itself in {told_seconds(state.disarm.arms_in_seconds)}")
            return
        if time.monotonic() > deadline or not state.HasField("disarm"):
            raise Timeout(
                f"HA is {state.disarm.state or 'armed'}: {seen}", remedy="'kvorum ha status' shows how it goes on"
            )
        time.sleep(POLL_S)


@click.command()
@click.pass_obj
def arm(session: Session) -> None:
    """Arm HA before its time: the nodes take leases again, then everything goes on.

    \b
    Example:
      kvorum ha arm
    """
    finish(session, session.client.ha.arm(), wait=True)


@click.command()
@click.argument("name", required=False, type=click.Choice(["fast", "normal", "patient"]))
@click.option("--watchdog", "watchdog_s", default=0, type=click.IntRange(0, 60), metavar="SECONDS",
              help="What the hosts' watchdogs need. Default: as the profile has it.")  # fmt: skip
@output_option
@click.pass_obj
def profile(session: Session, name: str | None, watchdog_s: int, output: str) -> None:
    """Show how long HA sits out a stall and when guests start elsewhere; or choose the profile NAME.

    It may be changed while guests run. Times count from a node's last renewal of its lease: it pauses its guests, kills them, its
    watchdog resets it; after T the others start them.

    \b
    Examples:
      kvorum ha profile
      kvorum ha profile fast
    """
    if name is not None:
        session.client.ha.set_profile(name, watchdog_s=watchdog_s)
    elif watchdog_s:
        raise InvalidInput("--watchdog goes with a profile", remedy=f"kvorum ha profile normal --watchdog {watchdog_s}")
    found = session.client.ha.profiles()
    if output == "json":
        print_json(found)
        return
    print_table([profile_row(one) for one in found], columns=PROFILE_COLUMNS)


def profile_row(one: "pb.HaProfile") -> dict[str, object]:
    return {
        "profile": one.name,
        "chosen": "*" if one.chosen else "",
        "sits out": f"{one.tolerates_seconds:g} s",
        "pause": f"{one.pause_after_seconds:g} s",
        "kill": f"{one.kill_after_seconds:g} s",
        "reset": f"{one.reset_after_seconds:g} s",
        "T": f"{one.takeover_after_seconds:.1f} s",
    }


def parse_time(text: str) -> int:
    """`30m` -> 1800."""
    match = re.fullmatch(r"([0-9]{1,6})([smh]?)", text.strip())
    if match is None or not int(match[1]):
        raise InvalidInput(f"{text!r} is no time", field="--for", remedy="write 90s, 30m or 2h")
    return int(match[1]) * UNITS_S[match[2]]


COMMANDS = (maintenance, disarm, arm, profile)
