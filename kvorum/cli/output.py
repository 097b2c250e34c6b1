"""Results on standard output: tables and key-value lists for people, JSON for programs.

JSON shows protobuf messages as they are named in the API (lower_snake_case); tables show what a person looks for.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import rich_click as click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

Command = TypeVar("Command", bound=Callable[..., Any])

Row = Mapping[str, object]

_WIDEST = 10_000


def output_option(command: Command) -> Command:
    """`-o table|json`, passed to the command as `output`."""
    option = click.option(
        "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print."
    )
    return option(command)


def as_json(value: object) -> object:
    if isinstance(value, Message):
        return MessageToDict(value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [as_json(item) for item in value]
    return value


def print_json(value: object) -> None:
    click.echo(json.dumps(as_json(value), indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Row], *, columns: Sequence[str]) -> None:
    """One line a row, however narrow the terminal; when the output is none, plain text that `awk` can split."""
    console = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), no_wrap=True)
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    # Rich would cut names and addresses off at the width of the terminal, and at 80 columns where there is none.
    wanted = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    console.width = max(console.width, wanted)
    console.print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        click.echo(f"{name:<{width}}  {_text(value)}")


def local_time(stamp: Timestamp) -> str:
    """A protobuf time in the reader's own time zone; empty when unset."""
    if not stamp.seconds:
        return ""
    return datetime.fromtimestamp(stamp.seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def short(resource: str) -> str:
    """`nodes/n1` -> `n1`."""
    return resource.rpartition("/")[2]


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    return str(value)
