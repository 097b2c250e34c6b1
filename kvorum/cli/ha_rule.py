"""`kvorum ha rule`: where guests may run and would rather run, together, apart, or near certain nodes; who starts first."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import rich_click as click

from kvorum.cli import live_names
from kvorum.cli.output import output_option, print_json, print_table
from kvorum.cli.session import Session
from kvorum.errors import InvalidInput, Refused

if TYPE_CHECKING:
    from kvorum.cli.output import Command
    from kvorum.v1 import ha_pb2 as pb

COLUMNS = ("rule", "kind", "resources", "asks", "strength", "enabled", "comment")
KINDS = ("node-affinity", "resource-affinity", "start-order")
# Options that only one kind has.
OWN = {"nodes": "node-affinity", "affinity": "resource-affinity", "after": "start-order", "delay_seconds": "start-order",
       "deadline_seconds": "start-order"}  # fmt: skip


@click.group()
def rule() -> None:
    """Rules for where guests run (near nodes, together, apart) and for who starts first.

    A strict rule is kept at any price: a guest rather stays down. A wish (--soft) weighs against other wishes.

    A start-order makes resources wait until others have run for a while, and stop before them. Soft, they wait only for
    what is on its way by itself, and never longer than the deadline. What runs already is left alone.

    \b
    Examples:
      kvorum ha rule add node-affinity near-san --resources vm:100,vm:101 --nodes n1:2,n2
      kvorum ha rule add resource-affinity dbs-apart --resources vm:200,vm:201 --affinity negative
      kvorum ha rule add start-order web-after-db --resources vm:101,ct:102 --after vm:100 --delay 20
      kvorum ha rule check
    """


def rule_options(command: "Command") -> "Command":
    """Those that `add` and `set` share, last ones first."""
    for option in (
        click.option("--comment", default=None),
        click.option("--enable/--disable", "enabled", default=None, help="A disabled rule counts as none."),
        click.option("--weight", type=click.IntRange(1, 1000), default=None, help="Of a wish. Default: 100."),
        click.option("--strict/--soft", default=None,
                     help="Kept at any price, or a wish. Default: strict for resource-affinity, else soft."),
        click.option("--deadline", "deadline_seconds", type=click.IntRange(1, 86400), default=None, metavar="SECONDS",
                     help="How long they wait at most. Default: strict, without an end; soft, the delay and 300 s."),
        click.option("--delay", "delay_seconds", type=click.IntRange(0, 3600), default=None, metavar="SECONDS",
                     help="How long those of --after must have run. Default: 0."),
        click.option("--after", default=None, metavar="SID,...", help="Who starts first; for a start-order."),
        click.option("--affinity", type=click.Choice(["positive", "negative"]), default=None,
                     help="Together or apart; for a resource-affinity."),
        click.option("--nodes", default=None, metavar="NODE[:PRIORITY],...",
                     help="The higher the better; for a node-affinity."),
    ):  # fmt: skip
        command = option(command)
    return command


@rule.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.option("--resources", required=True, metavar="SID,...", help="vm:100,ct:101")
@rule_options
@click.option("--dry-run", is_flag=True, help="Only say whether it contradicts other rules.")
@click.pass_obj
def add(session: Session, /, kind: str, name: str, dry_run: bool, **options: object) -> None:
    """Add a rule NAME. Refused, with the smallest set of rules that it contradicts, when they cannot be kept all at once.

    \b
    Examples:
      kvorum ha rule add node-affinity near-san --resources vm:100 --nodes n1:2,n2 --strict
      kvorum ha rule add resource-affinity web-spread --resources vm:1000,vm:1001 --affinity negative --soft --weight 200
      kvorum ha rule add start-order web-after-db --resources vm:101 --after vm:100 --delay 20 --deadline 120
    """
    from kvorum.v1 import ha_pb2 as pb

    wish = pb.HaRule(id=name, kind=kind, enabled=True, strict=kind == "resource-affinity")
    changed(wish, options)
    session.client.ha.add_rule(wish, dry_run=dry_run)
    click.echo(f"rule {name} contradicts none" if dry_run else f"rule {name} is added")


@rule.command("set")
@click.argument("name", shell_complete=live_names.rules)
@click.option("--resources", default=None, metavar="SID,...", help="vm:100,ct:101")
@rule_options
@click.pass_obj
def set_rule(session: Session, /, name: str, **options: object) -> None:
    """Change rule NAME; what is not given stays.

    \b
    Examples:
      kvorum ha rule set near-san --nodes n1:2,n2,n3
      kvorum ha rule set dbs-apart --disable
    """
    if all(value is None for value in options.values()):
        raise InvalidInput("there is nothing to change", remedy="give --nodes or another option; --help lists them")
    wish = session.client.ha.rule(name)
    changed(wish, options)
    session.client.ha.replace_rule(wish)
    click.echo(f"rule {name} is changed")


@rule.command()
@click.argument("name", shell_complete=live_names.rules)
@click.pass_obj
def remove(session: Session, name: str) -> None:
    """Remove rule NAME; guests stay where they are.

    \b
    Example:
      kvorum ha rule remove near-san
    """
    session.client.ha.remove_rule(name)
    click.echo(f"rule {name} is removed")


@rule.command("list")
@output_option
@click.pass_obj
def list_rules(session: Session, output: str) -> None:
    """All rules, in the file's order; what is wrong with them on standard error.

    \b
    Example:
      kvorum ha rule list -o json
    """
    found = session.client.ha.rules()
    if output == "json":
        print_json(found)
        return
    print_table([rule_row(one) for one in found.rules], columns=COLUMNS)
    for text in troubles(found):
        click.echo(text, err=True)


@rule.command()
@click.pass_obj
def check(session: Session) -> None:
    """Say what contradicts what, and what cannot be read. Exit code 4 when something does.

    \b
    Example:
      kvorum ha rule check
    """
    found = session.client.ha.rules()
    for text in (*troubles(found), *found.remarks):
        click.echo(text)
    if found.conflicts or found.problems:
        raise Refused(
            "the rules cannot all be kept", remedy="change or remove one of each set: kvorum ha rule set NAME"
        )
    click.echo(f"{len(found.rules)} rules, no contradiction")


def changed(wish: "pb.HaRule", options: Mapping[str, object]) -> None:
    """Raises InvalidInput."""
    resources, nodes, after = options.get("resources"), options.get("nodes"), options.get("after")
    if isinstance(resources, str):
        del wish.resources[:]
        wish.resources.extend(split(resources))
    if isinstance(nodes, str):
        wish.nodes.clear()
        wish.nodes.update(parse_nodes(nodes))
    if isinstance(after, str):
        del wish.after[:]
        wish.after.extend(split(after))
    for key in ("affinity", "strict", "weight", "enabled", "comment", "delay_seconds", "deadline_seconds"):
        value = options.get(key)
        if value is not None:
            setattr(wish, key, value)
    for key, kind in (*OWN.items(), ("weight", "" if wish.kind == "start-order" else wish.kind)):
        if options.get(key) is not None and wish.kind != kind:
            name = key.removesuffix("_seconds")
            raise InvalidInput(
                f"a {wish.kind} has no {name}", field=f"--{name}", remedy="'kvorum ha rule --help' has examples"
            )


def parse_nodes(text: str) -> dict[str, int]:
    """`n1:2,n2` -> {"n1": 2, "n2": 0}."""
    found: dict[str, int] = {}
    for item in split(text):
        name, colon, priority = item.partition(":")
        if colon and not (priority.isascii() and priority.isdigit() and int(priority) <= 1000):
            raise InvalidInput(f"{priority!r} is no priority", field="--nodes", remedy="write n1:2, from 0 to 1000")
        found[name] = int(priority) if colon else 0
    return found


def split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def troubles(found: "pb.ListHaRulesResponse") -> list[str]:
    return [*(conflict.message for conflict in found.conflicts), *found.problems]


def rule_row(one: "pb.HaRule") -> dict[str, object]:
    ranked = sorted(one.nodes.items(), key=lambda item: (-item[1], item[0]))
    nodes = ", ".join(f"{name}:{priority}" if priority else name for name, priority in ranked)
    asks = f"on {nodes}" if one.kind == "node-affinity" else {"positive": "together"}.get(one.affinity, "apart")
    wish = f"wish, {one.weight}"
    if one.kind == "start-order":
        delay = f" + {one.delay_seconds} s" if one.delay_seconds else ""
        most = f", at most {one.deadline_seconds} s" if one.HasField("deadline_seconds") else ""
        asks, wish = f"after {', '.join(one.after)}{delay}{most}", "soft"
    return {
        "rule": one.id,
        "kind": one.kind,
        "resources": ",".join(one.resources),
        "asks": asks,
        "strength": "strict" if one.strict else wish,
        "enabled": one.enabled,
        "comment": one.comment,
    }


COMMANDS = (rule,)
