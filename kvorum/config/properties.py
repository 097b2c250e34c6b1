"""Property strings: the `local:4,size=4G,ssd=1` inside values of Proxmox VE's configuration files.

Parts are separated by commas. One key of each format may be written without its name (`default_key`): the volume of a disk.
A value with a comma or a quote in it stands in double quotes, where a backslash takes the next character as it is.
Which keys a format has, and what they mean, is for whoever asked.
"""

import re
from collections.abc import Iterable, Mapping

from kvorum.errors import ConfigError

_LIST_SEPARATORS = re.compile(r"[,; \t\n\r\0]+")
_TRUE = frozenset(("1", "on", "yes", "true"))
_FALSE = frozenset(("0", "off", "no", "false"))


def parse_properties(text: str, *, default_key: str = "", field: str = "") -> dict[str, str]:
    """Keys to values in their order. `field` names the config key for the errors. Raises ConfigError for a repeated key,
    a part without a key where no default exists, or a quote that does not end."""
    found: dict[str, str] = {}
    for part in _split(text, field=field):
        name, equals, value = part.partition("=")
        if part.startswith('"') or not equals:
            name, value = default_key, part
            if not name:
                raise ConfigError(f"{part!r} lacks its key", field=field, remedy="write KEY=VALUE")
        name = name.strip()
        if not name:
            raise ConfigError(f"{part!r} lacks its key", field=field, remedy="write KEY=VALUE")
        if name in found:
            raise ConfigError(f"{name} is given twice", field=field)
        found[name] = _unquote(value.strip())
    return found


def render_properties(properties: Mapping[str, str], *, default_key: str = "") -> str:
    """The opposite of parse_properties; the default key comes first, without its name."""
    parts = []
    if default_key in properties and default_key:
        parts.append(_quote(properties[default_key], bare=True))
    parts += [f"{key}={_quote(value)}" for key, value in properties.items() if not default_key or key != default_key]
    return ",".join(parts)


def parse_bool(text: str, *, field: str = "") -> bool:
    """`1 on yes true` or `0 off no false`, as in Proxmox VE. Raises ConfigError for anything else."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigError(f"{text!r} is neither 1 nor 0", field=field, remedy="write 1 or 0")


def parse_int(text: str, *, field: str = "", minimum: int | None = None, maximum: int | None = None) -> int:
    """A decimal number within its limits. Raises ConfigError."""
    if not re.fullmatch(r"-?[0-9]{1,19}", text.strip()):
        raise ConfigError(f"{text!r} is no number", field=field)
    value = int(text)
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        limits = (
            f"from {minimum} up"
            if maximum is None
            else f"up to {maximum}"
            if minimum is None
            else f"{minimum} to {maximum}"
        )
        raise ConfigError(f"{value} is out of range", field=field, remedy=f"use a number {limits}")
    return value


def split_list(text: str) -> list[str]:
    """Items of a list; commas, semicolons and blanks separate them alike."""
    return [item for item in _LIST_SEPARATORS.split(text) if item]


def render_list(items: Iterable[str]) -> str:
    return ",".join(items)


def _split(text: str, *, field: str) -> list[str]:
    """Parts between the commas that stand outside of quotes; empty parts are dropped."""
    parts, part = [], ""
    is_quoted = is_escaped = False
    for character in text:
        if character == "," and not is_quoted:
            parts.append(part)
            part = ""
            continue
        part += character
        if is_escaped:
            is_escaped = False
        elif character == "\\" and is_quoted:
            is_escaped = True
        elif character == '"' and (is_quoted or _begins_value(part[:-1])):
            is_quoted = not is_quoted
    if is_quoted:
        raise ConfigError("a double quote is not closed", field=field)
    return [stripped for stripped in (part.strip() for part in [*parts, part]) if stripped]


def _begins_value(before: str) -> bool:
    """A quote opens only at the beginning of a value: `comment=5" disk` is a plain one."""
    head, equals, rest = before.partition("=")
    return not (rest if equals else head).strip()


def _unquote(value: str) -> str:
    if len(value) < 2 or not (value.startswith('"') and value.endswith('"')):
        return value
    return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)


def _quote(value: str, *, bare: bool = False) -> str:
    """`bare` for a value without its key, which must not look like KEY=VALUE."""
    if value and value == value.strip() and not any(c in value for c in ',"') and not (bare and "=" in value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
