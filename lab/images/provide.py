"""Puts the built images where a lab's nodes look for them."""

from lab.layout import LabLayout


def provide(layout: LabLayout, nodes: int) -> None:
    """Nothing yet."""
