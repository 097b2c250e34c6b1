"""The root command: finds nouns lazily, prints errors with their remedy, and turns them into stable exit codes."""

import sys
from importlib import import_module
from importlib.metadata import entry_points

import rich_click as click
from click.exceptions import Abort, ClickException, Exit

from kvorum import __version__
from kvorum.cli.session import Session
from kvorum.errors import KvorumError

_NOUNS = {
    "cluster": "form, join and leave a cluster",
    "node": "the machines of the cluster",
    "guest": "virtual machines and containers alike",
    "vm": "virtual machines",
    "ct": "containers",
    "task": "long work: watch, wait, cancel",
    "ha": "what is kept running when nodes die",
    "store": "the replicated configuration files",
    "completion": "shell completion",
}

EXIT_CODES = {
    "INVALID_INPUT": 2,
    "CONFIG_ERROR": 2,
    "NOT_FOUND": 3,
    "ALREADY_EXISTS": 4,
    "REFUSED": 4,
    "FENCED": 4,
    "HISTORY_GONE": 3,
    "STALE_VERSION": 4,
    "LOCKED": 4,
    "NO_QUORUM": 5,
    "DISK_FULL": 5,
    "PERMISSION_DENIED": 6,
    "UNREACHABLE": 7,
    "TIMEOUT": 8,
    "OUTCOME_UNKNOWN": 8,
    "TASK_FAILED": 9,
    "CANCELLED": 10,
}


class LazyGroup(click.RichGroup):
    """Imports a noun's module only when the noun is used: gRPC and friends cost a third of a second."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_NOUNS, *(point.name for point in entry_points(group="kvorum.commands"))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _NOUNS:
            command = getattr(import_module(f"kvorum.cli.{cmd_name}"), cmd_name)
        else:
            points = [point for point in entry_points(group="kvorum.commands") if point.name == cmd_name]
            if not points:
                return None
            command = points[0].load()
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--connect", "target", default="", envvar="KVORUM_CONNECT", metavar="ADDRESS",
              help="Node to call, HOST or HOST:PORT. Default: this node.")  # fmt: skip
@click.option("--credentials", default="", envvar="KVORUM_CREDENTIALS", metavar="FILE",
              help="Credentials for calls over the network (kvorum cluster credentials).")  # fmt: skip
@click.option(
    "--timeout", "timeout_s", default=15.0, show_default=True, metavar="SECONDS", help="Deadline of each call."
)
@click.version_option(__version__, prog_name="kvorum")
@click.pass_context
def root(ctx: click.Context, target: str, credentials: str, timeout_s: float) -> None:
    """Cluster manager for virtual machines and containers.

    \b
    Examples:
      kvorum cluster init home              make this node the first of a cluster
      kvorum cluster token                  let another node in
      kvorum guest list                     what runs where
      kvorum vm migrate 100 n2              move a running VM to node n2

    \b
    Exit codes: 0 done, 1 failed, 2 wrong input, 3 not found, 4 refused by the present state, 5 no quorum,
    6 not permitted, 7 unreachable, 8 no answer in time, 9 the task failed, 10 cancelled, 130 interrupted.
    """
    ctx.obj = Session(target=target, credentials=credentials, timeout_s=timeout_s)
    ctx.call_on_close(ctx.obj.close)


def main() -> None:
    """Entry point; the exit codes are those that the help of `root` promises."""
    try:
        root.main(prog_name="kvorum", standalone_mode=False)
    except Exit as leave:
        sys.exit(leave.exit_code)
    except Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KvorumError as error:
        print_error(error)
        sys.exit(EXIT_CODES.get(error.reason, 1))


def print_error(error: KvorumError) -> None:
    """The cause, what it concerns, and what to do, on standard error."""
    field = error.details.get("field", "")
    click.echo(f"{click.style('error:', fg='red')} {error.message}{f' ({field})' if field else ''}", err=True)
    missing = error.details.get("missing", "")
    if missing and missing not in error.message:
        click.echo(f"  missing: {missing.replace(',', ', ')}", err=True)
    if error.remedy:
        click.echo(f"  {error.remedy}", err=True)


if __name__ == "__main__":
    main()
