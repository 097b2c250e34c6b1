"""The history against the simplest thing that could be right: every tree there ever was, kept whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs import history, snapshot
from clusterfs.commands import Delete, Envelope, Mkdir, Move, Op, Touch, Write
from clusterfs.outcomes import Done
from clusterfs.settings import Settings
from clusterfs.state import State, apply
from clusterfs.tree import Directory, File, join, lookup, walk

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENTS = st.sampled_from([b"", b"1", b"2", b"1\n2\n3\n", b"1\n3\n2\n", b"0\n1\n2\n"])
OPS = st.one_of(
    st.builds(Write, PATHS, CONTENTS, parents=st.just(True)),
    st.builds(Write, PATHS, CONTENTS, parents=st.just(True)),
    st.builds(Mkdir, PATHS, parents=st.booleans(), exist_ok=st.booleans()),
    st.builds(Touch, PATHS, st.integers(0, 3)),
    st.builds(Delete, PATHS, recursive=st.booleans()),
    st.builds(Move, PATHS, PATHS, replace=st.booleans()),
)
LOGS = st.lists(OPS, min_size=1, max_size=25)
BOUNDS = st.builds(
    Settings,
    history_changes=st.integers(0, 30),
    history_bytes=st.integers(0, 200),
    history_days=st.sampled_from([0, 1, 90]),
)

Flat = dict[str, bytes | None]


def flat(root: Directory) -> Flat:
    return {join(at): node.content if isinstance(node, File) else None for at, node in walk(root)}


def replay(ops: list[Op], bounds: Settings = Settings()) -> tuple[State, list[Flat]]:  # noqa: B008 - a constant
    state = State(settings=bounds)
    trees = [flat(state.root)]
    for index, op in enumerate(ops, start=1):
        state, _result, _events = apply(state, Envelope(op, author=f"u{index}", time_ms=index * 40_000_000), index)
        trees.append(flat(state.root))
    return state, trees


def past_of(trees: list[Flat], state: State, path: str) -> list[tuple[int, bytes | None]]:
    """What was at `path` after each index, newest first, going on at the old name where a move brought it."""
    moves = {(record.index, record.new_path): record for record in state.history if record.new_path}
    name, found = path, []
    for index in range(len(trees) - 1, 0, -1):
        found.append((index, trees[index].get(name)))
        for (at, place), record in moves.items():
            came = at == index and (name == place or name.startswith(f"{place}/")) and name in trees[index]
            if came and name not in trees[index - 1]:
                name = record.path + name[len(place) :]
                break
    found.append((0, trees[0].get(name)))
    return found


@settings(max_examples=250, deadline=None)
@given(LOGS)
def test_any_tree_of_the_past_can_be_made_again(ops: list[Op]) -> None:
    state, trees = replay(ops)
    for index in range(max(0, state.history.since), len(trees)):
        root = history.tree_at(state.history, state.root, index)
        assert root is not None
        assert flat(root) == trees[index]


@settings(max_examples=250, deadline=None)
@given(LOGS, PATHS)
def test_versions_are_what_was_there_at_each_index(ops: list[Op], path: str) -> None:
    state, trees = replay(ops)
    for index, content in past_of(trees, state, path):
        assert history.content_at(state.history, state.root, path, index) == content
    found = history.versions(state.history, state.root, path)
    assert [version.index for version in found] == sorted({version.index for version in found})


@settings(max_examples=200, deadline=None)
@given(LOGS, BOUNDS)
def test_bounds_hold_and_what_is_kept_is_whole(ops: list[Op], bounds: Settings) -> None:
    state, trees = replay(ops, bounds)
    kept = state.history
    assert len(kept) <= bounds.history_changes
    assert kept.cost_bytes <= bounds.history_bytes
    everything, _trees = replay(ops)
    assert list(kept) == [record for record in everything.history if record.index > kept.since]
    for index in range(max(0, kept.since), len(trees)):
        root = history.tree_at(kept, state.root, index)
        assert root is not None
        assert flat(root) == trees[index]


@settings(max_examples=150, deadline=None)
@given(LOGS, PATHS)
def test_the_lines_of_a_blame_are_the_file(ops: list[Op], path: str) -> None:
    state, trees = replay(ops)
    lines = history.blame(state.history, state.root, path)
    assert b"".join(line.text for line in lines) == (trees[-1].get(path) or b"")
    for line in lines:
        assert line.author == f"u{line.index}"


@settings(max_examples=150, deadline=None)
@given(LOGS, st.integers(0, 25), BOUNDS)
def test_a_snapshot_taken_anywhere_goes_on_alike(ops: list[Op], at: int, bounds: Settings) -> None:
    steady, _trees = replay(ops, bounds)
    state = State(settings=bounds)
    for index, op in enumerate(ops, start=1):
        if index - 1 == min(at, len(ops) - 1):
            state = snapshot.decode([b"".join(snapshot.encode(state))])
        state, _result, _events = apply(state, Envelope(op, author=f"u{index}", time_ms=index * 40_000_000), index)
    assert state == steady
    assert b"".join(snapshot.encode(state)) == b"".join(snapshot.encode(steady))


@settings(max_examples=150, deadline=None)
@given(LOGS, PATHS, st.integers(0, 25))
def test_what_is_restored_is_what_was_there_then(ops: list[Op], path: str, index: int) -> None:
    state, _trees = replay(ops)
    content = history.content_at(state.history, state.root, path, index)
    if content is None:
        return
    op = Write(path, content, parents=True)
    state, result, _events = apply(state, Envelope(op, time_ms=state.clock_ms), len(ops) + 1)
    if isinstance(result, Done):
        node = lookup(state.root, tuple(path.split("/")))
        assert isinstance(node, File)
        assert node.content == content
        assert history.content_at(state.history, state.root, path, index) == content
        assert history.content_at(state.history, state.root, path, len(ops) + 1) == content


@settings(max_examples=100, deadline=None)
@given(LOGS, st.lists(NAMES, max_size=2))
def test_names_are_those_that_were_ever_there(ops: list[Op], directory: list[str]) -> None:
    state, trees = replay(ops)
    prefix = "".join(f"{name}/" for name in directory)
    ever = {path[len(prefix) :].split("/")[0] for tree in trees for path in tree if path.startswith(prefix) and path}
    assert set(history.names(state.history, state.root, tuple(directory))) == ever


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(OPS, st.builds(Write, PATHS, st.binary(max_size=6000))), max_size=40))
def test_no_limit_is_ever_exceeded(ops: list[Op]) -> None:
    limits = Settings(max_file_bytes=4500, max_tree_bytes=9000, max_entries=7)
    state = State(settings=limits)
    for index, op in enumerate(ops, start=1):
        state, _result, _events = apply(state, Envelope(op), index)
        assert state.root.size <= limits.max_tree_bytes
        assert state.root.count <= limits.max_entries
        assert all(len(content or b"") <= limits.max_file_bytes for content in flat(state.root).values())


@settings(max_examples=300, deadline=None)
@given(LOGS, st.data())
def test_damaged_snapshots_are_refused_or_are_states(ops: list[Op], data: st.DataObject) -> None:
    state, _trees = replay(ops)
    whole = bytearray(b"".join(snapshot.encode(state)))
    for _damage in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        damaged = snapshot.decode([bytes(whole)])
    except snapshot.BadSnapshot:
        return
    assert b"".join(snapshot.encode(damaged))
