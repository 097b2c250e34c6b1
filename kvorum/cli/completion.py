"""`kvorum completion`: the line that a shell needs."""

import rich_click as click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Examples:
      kvorum completion bash > /etc/bash_completion.d/kvorum
      source <(kvorum completion zsh)
    """
    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(ctx.find_root().command, {}, "kvorum", "_KVORUM_COMPLETE").source())
