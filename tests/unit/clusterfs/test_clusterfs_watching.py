import pytest

from clusterfs.commands import Envelope, Mkdir, Write
from clusterfs.outcomes import Deleted, Event, MembersChanged, Moved, Written
from clusterfs.state import State, apply
from clusterfs.tree import File, lookup
from clusterfs.watching import seen_from

FILE = File(b"", 1, 1, 1)


def tree() -> Event:
    """`old` has moved to `a/new`, with a directory and two files in it."""
    state = State()
    for index, op in enumerate((Mkdir("d"), Write("d/f", b""), Mkdir("d/e"), Write("d/e/g", b"")), start=1):
        state, _result, _events = apply(state, Envelope(op), index)
    node = lookup(state.root, ("d",))
    assert node is not None
    return Moved("old", "a/new", node)


@pytest.mark.parametrize(
    ("event", "watched", "seen"),
    [
        (Written("a/b", FILE), "", ["+a/b"]),
        (Written("a/b", FILE), "a", ["+a/b"]),
        (Written("a/b", FILE), "a/b", ["+a/b"]),
        (Written("a/b", FILE), "a/bc", []),
        (Written("ab", FILE), "a", []),
        (Deleted("a"), "a/b/c", ["-a/b/c"]),
        (Deleted("a/b"), "a", ["-a/b"]),
        (Deleted("b"), "a", []),
        (MembersChanged(), "", []),
        (tree(), "", ["old>a/new"]),
        (tree(), "old", ["-old"]),
        (tree(), "old/f", ["-old/f"]),
        (tree(), "a", ["+a/new", "+a/new/e", "+a/new/e/g", "+a/new/f"]),
        (tree(), "a/new/e", ["+a/new/e", "+a/new/e/g"]),
        (tree(), "a/new/nothing", []),
        (tree(), "elsewhere", []),
    ],
)
def test_a_watcher_is_told_what_happens_to_its_path(event: Event, watched: str, seen: list[str]) -> None:
    def short(change: Written | Deleted | Moved) -> str:
        match change:
            case Written():
                return f"+{change.path}"
            case Deleted():
                return f"-{change.path}"
            case Moved():
                return f"{change.path}>{change.new_path}"

    parts = tuple(watched.split("/")) if watched else ()
    assert [short(change) for change in seen_from(event, parts)] == seen
