"""`kvorum store limits` and `kvorum store usage`: how big the store may grow, and how full it is."""

import re

import rich_click as click

from kvorum.cli.output import output_option, print_json, print_table
from kvorum.cli.session import Session
from kvorum.errors import InvalidInput

_SIZE = re.compile(r"(\d+)\s*(?:([KMG])(?:iB)?|B)?", re.IGNORECASE)
_SHIFT = {"": 0, "K": 10, "M": 20, "G": 30}


@click.command("limits")
@click.option("--file-bytes", "max_file_bytes", metavar="SIZE", help="Of one file.")
@click.option("--tree-bytes", "max_tree_bytes", metavar="SIZE", help="Of all files together.")
@click.option("--entries", "max_entries", metavar="NUMBER", help="Files and directories.")
@click.option("--history-days", metavar="DAYS", help="How long changes are kept.")
@click.option("--history-bytes", metavar="SIZE", help="Of content that is no longer in the tree.")
@click.option("--history-changes", metavar="NUMBER", help="How many changes are kept.")
@click.option("--reason", default="", help="Why.")
@output_option
@click.pass_obj
def limits(session: Session, /, reason: str, output: str, **wanted: str | None) -> None:
    """Show the limits of the store, or change them for the whole cluster. Sizes may end in K, M or G.

    \b
    Examples:
      kvorum store limits
      kvorum store limits --file-bytes 2M --history-days 365
    """
    given = {name: parse_size(text, name) for name, text in wanted.items() if text is not None}
    settings = (
        session.client.settings.update(reason=reason, **given) if given else session.client.settings.get().settings
    )
    if output == "json":
        print_json(settings)
        return
    rows = [{"limit": field.name, "value": getattr(settings, field.name)} for field in settings.DESCRIPTOR.fields]
    print_table(rows, columns=("limit", "value"))


@click.command("usage")
@output_option
@click.pass_obj
def usage(session: Session, output: str) -> None:
    """How full the store is. From 80 % of a limit on there is a warning, here and in the cluster log.

    \b
    Example:
      kvorum store usage -o json
    """
    answer = session.client.settings.get()
    if output == "json":
        print_json(answer)
        return
    rows = [
        {"limit": use.name, "used": use.used, "of": use.limit, "share": f"{use.used * 100 // max(1, use.limit)} %"}
        for use in answer.uses
    ]
    print_table(rows, columns=("limit", "used", "of", "share"))
    click.echo(f"every change after index {answer.oldest_index} is kept")
    for warning in answer.warnings:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)


def parse_size(text: str, field: str) -> int:
    """`2M` -> 2097152. Raises InvalidInput."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f"{text!r} is no number", field=f"--{field.removeprefix('max_').replace('_', '-')}")
    return int(match[1]) << _SHIFT[(match[2] or "").upper()]
