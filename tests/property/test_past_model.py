"""The index below `.history` against the history read in full, while changes go on and old ones are forgotten."""

from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs import history
from clusterfs.commands import Delete, Envelope, Mkdir, Move, Op, Touch, Write
from clusterfs.past import Past, version_name
from clusterfs.settings import Settings
from clusterfs.state import State, apply
from clusterfs.tree import Parts, join

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENTS = st.sampled_from([b"", b"1", b"22"])
OPS = st.one_of(
    st.builds(Write, PATHS, CONTENTS, parents=st.just(True)),
    st.builds(Mkdir, PATHS, parents=st.booleans(), exist_ok=st.booleans()),
    st.builds(Touch, PATHS, st.integers(0, 3)),
    st.builds(Delete, PATHS, recursive=st.booleans()),
    *[st.builds(Move, PATHS, PATHS, replace=st.booleans())] * 3,
)
# Something to move from the start; else most commands are refused.
BEGINNING: list[tuple[Op, bool]] = [
    (Write(path, path.encode(), parents=True), False) for path in ("a/a", "a/b/a", "a/b/b", "b/a", "b/c", "b/a")
]
# A step is looked at or not, so that the index has to catch up by one record and by many.
STEPS = st.lists(st.tuples(OPS, st.booleans()), min_size=8, max_size=30)
BOUNDS = st.builds(
    Settings, history_changes=st.sampled_from([0, 5, 12, 100, 100]), history_bytes=st.sampled_from([9, 1000, 1000])
)


def compare(past: Past, state: State, parts: Parts) -> None:
    """All that can be reached from `parts`; its depth is bounded by that of the paths."""
    found = past.listing(state.history, state.root, parts)
    assert found is not None
    names = history.names(state.history, state.root, parts)
    versions = history.versions(state.history, state.root, join(parts)) if parts else ()
    contents = {version_name(v): (v.content, v.mtime) for v in versions if v.content is not None}
    assert list(found) == [*names, *contents]
    for name, entry in found.items():
        at = (*parts, name)
        assert past.entry(state.history, state.root, at) == entry
        content = past.content(state.history, state.root, at)
        if entry.is_directory:
            assert content is None
            compare(past, state, at)
        else:
            assert (content, entry.mtime) == contents[name]
            assert content is not None and entry.size == len(content)
            assert past.listing(state.history, state.root, at) is None


@settings(max_examples=300, deadline=None)
@given(STEPS, BOUNDS)
def test_the_index_says_what_the_history_says(steps: list[tuple[Op, bool]], bounds: Settings) -> None:
    state, past = State(settings=bounds), Past()
    for index, (op, is_looked_at) in enumerate(BEGINNING + steps, start=1):
        state, _result, _events = apply(state, Envelope(op, time_ms=index * 1000), index)
        if is_looked_at:
            compare(past, state, ())
    compare(past, state, ())
