"""`kvorum guest`: virtual machines and containers alike."""

import rich_click as click

from kvorum.cli.guest_verbs import add_verbs


@click.group(cls=click.RichGroup)
def guest() -> None:
    """Virtual machines and containers alike.

    \b
    Examples:
      kvorum guest list
      kvorum guest migrate 100 n2
    """


add_verbs(guest)
