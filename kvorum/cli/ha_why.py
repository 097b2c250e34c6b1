"""`kvorum ha explain`, `simulate`, `records`: why guests are where they are, what would be, and what was."""

import time
from datetime import datetime
from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli import live_names
from kvorum.cli.ha_status import told_reserve, told_seconds
from kvorum.cli.ha_whole import outcome_row
from kvorum.cli.output import output_option, print_json, print_table, short
from kvorum.cli.session import Session
from kvorum.errors import InvalidInput, Refused

if TYPE_CHECKING:
    from kvorum.v1 import ha_pb2 as pb

POLL_S = 1.0
RESERVE_COLUMNS = ("without", "sid", "node", "why")
RECORD_COLUMNS = ("time", "node", "what")


@click.command()
@click.argument("sid", shell_complete=live_names.resources)
@click.option("--follow", is_flag=True, help="While its node is silent or it is retried: count down to the end.")
@output_option
@click.pass_obj
def explain(session: Session, sid: str, follow: bool, output: str) -> None:
    """Tell why SID is where it is, why not elsewhere, what happens if its node dies now, and what you can do.

    \b
    Examples:
      kvorum ha explain vm:100
      kvorum ha explain vm:100 --follow
    """
    answer = session.client.ha.explain(sid)
    if output == "json":
        print_json(answer)
        return
    for line in explained(answer):
        click.echo(line)
    while follow and (count := countdown(answer)):
        click.echo(count)
        time.sleep(POLL_S)
        answer = session.client.ha.explain(sid)
    if follow:
        click.echo(_state_line(answer.resource))


def explained(answer: "pb.ExplainHaResourceResponse") -> list[str]:
    resource = answer.resource
    lines = [_state_line(resource)]
    if count := countdown(answer):
        lines.append(f"  {count}")
    if answer.placement:
        lines += ["", "Why there:", *(f"  {line}" for line in answer.placement)]
    if answer.if_lost:
        where = short(resource.node)
        lines += ["", f"If {where} dies now:" if answer.fence_in_seconds < 0 else "Next:"]
        lines += [f"  {line}" for line in answer.if_lost]
    if resource.remedies:
        lines += ["", "What you can do:", *(f"  {line}" for line in resource.remedies)]
    return lines


def countdown(answer: "pb.ExplainHaResourceResponse") -> str:
    """Empty when nothing runs down."""
    node = short(answer.resource.node)
    if answer.resource.state == "fence" and answer.fence_in_seconds == 0:
        return f"{node} is being fenced now"
    if answer.fence_in_seconds > 0:
        return f"{node} is silent; its guests may start elsewhere in {answer.fence_in_seconds:.1f} s"
    if answer.resource.waits_for:
        most = answer.resource.waits_at_most_seconds
        ends = f"in {told_seconds(most)} at the latest it waits no longer" if most > 0 else "it waits without an end"
        return f"it waits for {', '.join(answer.resource.waits_for)}; {ends}"
    if answer.resource.retry_in_seconds > 0:
        return f"it is tried again in {told_seconds(answer.resource.retry_in_seconds)}"
    return ""


def _state_line(resource: "pb.HaResource") -> str:
    where = f" on {short(resource.node)}" if resource.node else ""
    target = f", going to {short(resource.target)}" if resource.target else ""
    return f"{resource.sid} is {resource.state or 'new'}{where}{target}: {resource.cause or 'no more is known'}"


@click.command()
@click.option("--kill", "killed", multiple=True, metavar="NODE", shell_complete=live_names.nodes,
              help="A node that dies; may be repeated: they die together.")  # fmt: skip
@click.option("--any", "any_nodes", type=click.IntRange(1, 3), default=None, metavar="N",
              help="Instead: any N nodes, one set after the other; exit code 4 if one is not borne.")  # fmt: skip
@output_option
@click.pass_obj
def simulate(session: Session, killed: tuple[str, ...], any_nodes: int | None, output: str) -> None:
    """Say what would start where, and when, if nodes died now. Nothing is changed.

    The answer is the manager's own, played ahead on the cluster as it is.

    \b
    Examples:
      kvorum ha simulate --kill n2
      kvorum ha simulate --kill n2 --kill n3
      kvorum ha simulate --any 1                is there room for the guests of whichever node dies?
    """
    if bool(killed) is (any_nodes is not None):
        raise InvalidInput("say who dies", field="--kill", remedy="give --kill NODE, or --any 1")
    answer = session.client.ha.simulate(killed, any_nodes=any_nodes or 0)
    if output == "json":
        print_json(answer)
    elif any_nodes is not None:
        print_reserve(answer.reserve)
    if any_nodes is not None and answer.reserve.loss_count:
        raise Refused(
            f"{answer.reserve.loss_count} of {answer.reserve.looked_at} losses are not borne",
            remedy="make room, loosen a rule, or give those that matter a higher priority",
        )
    if output == "json" or any_nodes is not None:
        return
    names = " and ".join(killed)
    if not answer.keeps_quorum:
        click.echo(
            f"without {names} there is no majority: nothing starts elsewhere, and every other node ends its HA guests; "
            "all start again when there is one"
        )
    elif answer.outcomes:
        print_table([killed_row(outcome) for outcome in answer.outcomes], columns=("sid", "node", "target", "why"))
        if answer.starts_after_seconds >= 0:
            click.echo(f"they start about {answer.starts_after_seconds:.0f} s after the death of {names}")
    else:
        click.echo(f"no HA guest is on {names}")
    if answer.unmanaged:
        click.echo(f"not under HA, so they stay down: {', '.join(answer.unmanaged)}", err=True)


def print_reserve(reserve: "pb.HaReserve") -> None:
    click.echo(told_reserve(reserve))
    rows: list[dict[str, object]] = []
    for loss in reserve.losses:
        without = " ".join(short(name) for name in loss.nodes)
        if not loss.keeps_quorum:
            rows.append({"without": without, "sid": "all", "node": "", "why": "no majority"})
        rows += [
            {"without": without, "sid": one.sid, "node": short(one.node), "why": one.cause} for one in loss.homeless
        ]
    if rows:
        print_table(rows, columns=RESERVE_COLUMNS)


def killed_row(outcome: "pb.HaOutcome") -> dict[str, object]:
    stays = "-" if outcome.state == "stopped" else "NOWHERE"
    row = {**outcome_row(outcome), "target": short(outcome.target_node) or stays}
    if outcome.waits_for and outcome.target_node:
        later = f", {outcome.later_seconds:.0f} s later" if outcome.later_seconds >= 1 else ""
        row["why"] = f"{row['why']}; starts after {', '.join(outcome.waits_for)}{later}"
    return row


@click.command()
@click.option("--node", default="", metavar="NODE", shell_complete=live_names.nodes, help="Only of this one.")
@output_option
@click.pass_obj
def records(session: Session, node: str, output: str) -> None:
    """What the nodes' keepers did and why: pauses, kills, resets, also of a host that went without a word.

    \b
    Examples:
      kvorum ha records
      kvorum ha records --node n2
    """
    answer = session.client.ha.records(node=node)
    if output == "json":
        print_json(answer)
        return
    print_table([record_row(record) for record in answer.records], columns=RECORD_COLUMNS)
    if answer.silent_nodes:
        names = ", ".join(short(name) for name in answer.silent_nodes)
        click.echo(f"nothing is heard of the keepers of {names}", err=True)


def record_row(record: "pb.HaRecord") -> dict[str, object]:
    stamp = datetime.fromtimestamp(record.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return {"time": stamp, "node": short(record.node), "what": record.text}


COMMANDS = (explain, simulate, records)
