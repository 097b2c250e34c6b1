"""Lines of a text file that is changed without losing what its author wrote.

Every parser of this package keeps each line as it was (`raw`, with its line end) beside what it means, so that a config that
passes through us differs only where somebody asked for a difference. What a line means is for the parsers.
"""

from dataclasses import dataclass

from kvorum.errors import ConfigError, InvalidInput

# What separates a value from its surroundings. Not str.strip()'s idea of space: that would eat characters of a value.
BLANKS = " \t\r"


@dataclass(frozen=True, slots=True)
class Line:
    """`key` is empty for comments and blank lines."""

    raw: str
    key: str = ""
    value: str = ""


def decode(content: str | bytes, *, path: str) -> str:
    """Text of a file. Raises ConfigError when it is no UTF-8 or holds a NUL."""
    try:
        text = content if isinstance(content, str) else content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1 if isinstance(content, bytes) else 0
        raise ConfigError("this line is no UTF-8 text", path=path, line=line) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError("this line holds a NUL character", path=path, line=line)
    return text


def split(text: str) -> list[str]:
    """Lines with their `\\n`; the last one may lack it. Only `\\n` ends a line, as in Proxmox VE."""
    lines = text.split("\n")
    last = lines.pop()
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def terminated(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    """The same lines, fit for another one to follow."""
    if not lines or lines[-1].raw.endswith("\n"):
        return lines
    last = lines[-1]
    return (*lines[:-1], Line(f"{last.raw}\n", last.key, last.value))


def check_value(value: str, *, field: str) -> str:
    """A value as it will be read back. A line break in it would smuggle in another key, so it is refused."""
    if any(character in value for character in "\n\r\0"):
        raise InvalidInput(f"the value of {field} must be a single line", field=field)
    return value.strip(BLANKS)
