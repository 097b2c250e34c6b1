"""The one way XML elements are made here: typed, and without string pasting."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from lxml import etree  # type: ignore[import-untyped]

# lxml comes without types.
Element: TypeAlias = Any


def element(
    tag: str,
    attributes: Mapping[str, str] | None = None,
    *children: Element,
    text: str | None = None,
    nsmap: Mapping[str, str] | None = None,
) -> Element:
    made = etree.Element(tag, dict(attributes or {}), nsmap=dict(nsmap) if nsmap else None)
    made.text = text
    made.extend(children)
    return made
