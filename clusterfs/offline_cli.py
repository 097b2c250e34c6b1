"""`kvorum store verify|dump|export|import`: the commands for a node whose daemon is stopped. What they do is in `offline`."""

import json
import sys
from pathlib import Path

import rich_click as click

from clusterfs import offline
from clusterfs.offline import Loaded
from kvorum import epochs
from kvorum.errors import KvorumError, Refused
from kvorum.node import STATE

_state_dir = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=STATE,
    show_default=True,
    help="Where the node keeps its identity, keys and data.",
)


class _Watch:
    """Says on a terminal how far it is; silent in pipes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(1, total)
        if percent != self._shown and sys.stderr.isatty():
            self._shown = percent
            end = "\n" if done >= total else ""
            click.echo(f"\r{self._what}: {percent} % ({done} of {total}){end}", err=True, nl=False)


@click.command()
@_state_dir
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of the answer.")
def verify(state_dir: Path, output: str) -> None:
    """Check this stopped node's log and snapshot, decode everything, and print the digest of the state.

    Two nodes that are at the same index have the same digest. Nothing is changed.

    \b
    Examples:
      systemctl stop kvorum-clusterfs && kvorum store verify
      kvorum store verify --state-dir /mnt/rescue/var/lib/kvorum

    \b
    Exit codes: 0 everything is whole, 1 it is damaged, 3 there is no store, 4 the daemon runs.
    """
    with offline.held(state_dir) as data:
        loaded = offline.load(data, progress=_Watch("checked"))
        report = _report(loaded)
    if output == "json":
        click.echo(json.dumps(report))
        return
    width = max(map(len, report))
    for name, value in report.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {value}")


def _report(loaded: Loaded) -> dict[str, object]:
    root = loaded.state.root
    return {
        "node": loaded.uid,
        "index": loaded.index,
        "digest": offline.digest(loaded.state),
        "not_known_committed": loaded.last_index - loaded.index,
        "term": loaded.term,
        "entries": root.count,
        "bytes": root.size,
        "members": ", ".join(sorted(member.name for member in loaded.state.members.values())),
        "voters": ", ".join(sorted(loaded.configuration.voters)),
        "learners": ", ".join(sorted(loaded.configuration.learners)),
        "epoch": epochs.text(loaded.configuration.epoch),
        "snapshot_index": loaded.snapshot_index,
        "log": f"{loaded.base_index + 1} to {loaded.last_index} in {loaded.segments} segments",
        "torn_bytes": loaded.torn_bytes,
    }


@click.command()
@_state_dir
@click.option("--from", "first", default=0, help="First log index; with a range only entries are printed.")
@click.option("--to", "last", default=2**64, show_default="the end", help="Last log index.")
@click.option("--content", is_flag=True, help="Files' contents too, in base64. They may be secrets.")
def dump(state_dir: Path, first: int, last: int, *, content: bool) -> None:
    """Print this stopped node's log, a record a line, as JSON.

    \b
    Examples:
      kvorum store dump | tail -n 3
      kvorum store dump --from 1200 --to 1300 | jq 'select(.op.path == "storage.cfg")'
    """
    with offline.held(state_dir) as data:
        for record in offline.dump(data, first=first, last=last, contents=content):
            click.echo(json.dumps(record))


@click.command("export")
@_state_dir
@click.option("--all", "everything", is_flag=True, help="Also the newest entries, not known to be committed.")
@click.argument("target")
def export_tree(state_dir: Path, target: str, *, everything: bool) -> None:
    """Write this stopped node's tree as files to TARGET, or as a tar archive to standard output for '-'.

    What is in priv/ is for root's eyes only, there as in the mount. A node's log may end with entries of which it does not know
    whether the others have them; they are left out, unless --all is given or the node is alone.

    \b
    Examples:
      kvorum store export /root/kvorum-rescue
      kvorum store export - | ssh backup 'cat > kvorum.tar'
    """
    if target == "-" and sys.stdout.isatty():
        raise Refused("an archive is not for the terminal", remedy="redirect it, or name a directory")
    with offline.held(state_dir) as data:
        loaded = offline.load(data, everything=everything, progress=_Watch("read"))
        if target == "-":
            count = offline.export_tar(loaded.state, sys.stdout.buffer)
        else:
            count = offline.export_files(loaded.state, Path(target), progress=_Watch("written"))
    left = loaded.last_index - loaded.index
    click.echo(f"{count} entries as of index {loaded.index}", err=True)
    if left:
        click.echo(f"the log goes on for {left} entries that are not known to be committed; --all takes them", err=True)


@click.command("import")
@_state_dir
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
def import_tree(state_dir: Path, source: Path) -> None:
    """Make a fresh store with this node as its only member from the files in SOURCE.

    The node keeps its identity and keys. It refuses when there is a store already. What the mount computes (.version, links
    and the like) and locks are left out; the other nodes join again.

    \b
    Examples:
      mv /var/lib/kvorum/clusterfs /var/lib/kvorum/clusterfs.old
      kvorum store import /root/kvorum-rescue
      systemctl start kvorum-clusterfs
    """
    with offline.held(state_dir) as data:
        try:
            count = offline.import_files(source, state_dir, data, progress=_Watch("imported"))
        except OSError as error:
            raise KvorumError(f"{source} cannot be imported: {error}") from error
    click.echo(f"{count} entries; start kvorum-clusterfs to use them")
