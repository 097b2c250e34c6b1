"""The tree against the simplest thing that could be right: one flat dict of paths."""

import string

from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs.commands import Delete, Envelope, Mkdir, Move, Op, Write
from clusterfs.outcomes import Code, Done, Refusal
from clusterfs.state import State, apply
from clusterfs.tree import Directory, File, join, walk, weight

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
OPS = st.one_of(
    st.builds(Write, PATHS, st.binary(max_size=4), absent=st.booleans(), parents=st.booleans()),
    st.builds(Mkdir, PATHS, parents=st.booleans(), exist_ok=st.booleans()),
    st.builds(Delete, PATHS, recursive=st.booleans(), only=st.sampled_from(["", "file", "directory"])),
    st.builds(Move, PATHS, PATHS, replace=st.booleans()),
)


class Model:
    """Paths to contents, None for a directory. Knows nothing of path-copying."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes | None] = {"": None}

    def children(self, path: str) -> list[str]:
        return [other for other in self.entries if other.startswith(f"{path}/")]

    def parent_fault(self, path: str) -> Code | None:
        parent = path.rpartition("/")[0]
        if parent in self.entries:
            return None if self.entries[parent] is None else Code.not_directory
        return self.lookup_fault(parent)

    def lookup_fault(self, path: str) -> Code:
        names = path.split("/")
        above = ["/".join(names[:length]) for length in range(1, len(names))]
        return Code.not_directory if any(self.entries.get(at) is not None for at in above) else Code.not_found

    def make_parents(self, path: str) -> Code | None:
        names = path.split("/")
        above = ["/".join(names[:length]) for length in range(1, len(names))]
        if any(self.entries.get(at) is not None for at in above):
            return Code.not_directory
        self.entries.update({at: None for at in above if at not in self.entries})
        return None

    def perform(self, op: Op) -> Code | None:
        match op:
            case Write():
                return self.write(op)
            case Mkdir():
                return self.mkdir(op)
            case Delete():
                return self.delete(op)
            case Move():
                return self.move(op)
        raise AssertionError(op)

    def write(self, op: Write) -> Code | None:
        if op.absent and op.path in self.entries:
            return Code.exists
        if op.path in self.entries and self.entries[op.path] is None:
            return Code.is_directory
        fault = self.make_parents(op.path) if op.parents else self.parent_fault(op.path)
        if fault is None:
            self.entries[op.path] = op.content
        return fault

    def mkdir(self, op: Mkdir) -> Code | None:
        if op.path in self.entries:
            return None if op.exist_ok and self.entries[op.path] is None else Code.exists
        fault = self.make_parents(op.path) if op.parents else self.parent_fault(op.path)
        if fault is None:
            self.entries[op.path] = None
        return fault

    def delete(self, op: Delete) -> Code | None:
        if op.path not in self.entries:
            return self.lookup_fault(op.path)
        if self.entries[op.path] is None:
            if op.only == "file":
                return Code.is_directory
            if self.children(op.path) and not op.recursive:
                return Code.not_empty
        elif op.only == "directory":
            return Code.not_directory
        for path in [op.path, *self.children(op.path)]:
            del self.entries[path]
        return None

    def move(self, op: Move) -> Code | None:
        fault = self.parent_fault(op.path) or self.parent_fault(op.new_path)
        if fault is not None:
            return fault
        if op.path not in self.entries:
            return self.lookup_fault(op.path)
        if op.path == op.new_path:
            return None
        if op.new_path.startswith(f"{op.path}/"):
            return Code.invalid
        if op.new_path in self.entries:
            is_directory, there = self.entries[op.path] is None, self.entries[op.new_path]
            if not op.replace:
                return Code.exists
            if there is None and not is_directory:
                return Code.is_directory
            if there is None and self.children(op.new_path):
                return Code.not_empty
            if there is not None and is_directory:
                return Code.not_directory
        moved = {path: self.entries.pop(path) for path in [op.path, *self.children(op.path)]}
        self.entries.update({op.new_path + path[len(op.path) :]: content for path, content in moved.items()})
        return None


def flat(root: Directory) -> dict[str, bytes | None]:
    return {join(at): node.content if isinstance(node, File) else None for at, node in walk(root)}


def recount(node: Directory) -> tuple[int, int]:
    weights = [recount_one(child) for child in node.entries.values()]
    return sum(count for count, _size in weights), sum(size for _count, size in weights)


def recount_one(node: File | Directory) -> tuple[int, int]:
    if isinstance(node, File):
        return 1, len(node.content)
    count, size = recount(node)
    assert weight(node) == (count + 1, size)
    return count + 1, size


@settings(max_examples=250, deadline=None)
@given(st.lists(OPS, max_size=25))
def test_the_tree_does_what_a_flat_dict_of_paths_does(ops: list[Op]) -> None:
    model, state = Model(), State()
    for index, op in enumerate(ops, start=1):
        before = state.root
        expected = model.perform(op)
        state, result, events = apply(state, Envelope(op), index)
        got = result.code if isinstance(result, Refusal) else None
        assert got == expected, op
        assert flat(state.root) == model.entries, op
        assert (state.root.count, state.root.size) == recount(state.root)
        if isinstance(result, Refusal):
            assert state.root is before
            assert not events


@settings(max_examples=100, deadline=None)
@given(st.lists(OPS, min_size=1, max_size=20), st.integers(0, 19))
def test_an_old_root_is_a_snapshot_that_no_later_command_touches(ops: list[Op], at: int) -> None:
    state, held, before = State(), None, None
    for index, op in enumerate(ops, start=1):
        if index - 1 == min(at, len(ops) - 1):
            held, before = state.root, flat(state.root)
        state, _result, _events = apply(state, Envelope(op), index)
    assert held is not None
    assert flat(held) == before


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=string.printable, max_size=30))
def test_any_path_is_taken_or_refused_and_never_raises(path: str) -> None:
    state, result, _events = apply(State(), Envelope(Write(path, b"", parents=True)), 1)
    assert isinstance(result, Done | Refusal)
    assert (state.root.count > 0) == isinstance(result, Done)
