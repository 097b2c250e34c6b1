"""What the history says, by small stories: commands in, versions out."""

import pytest

from clusterfs import history, snapshot
from clusterfs.commands import (
    Configure,
    Delete,
    Envelope,
    MemberPut,
    MemberRemove,
    Mkdir,
    Move,
    Op,
    Touch,
    Unlock,
    Write,
)
from clusterfs.history import Kind
from clusterfs.outcomes import Done
from clusterfs.settings import Settings
from clusterfs.state import State, apply, check
from clusterfs.tree import Directory, File, join, lookup, walk

N1 = "11111111-1111-4111-8111-111111111111"
DAY_S = 86_400


class Story:
    def __init__(self, settings: Settings | None = None) -> None:
        self.state = State(settings=settings or Settings())
        self.index = 0

    def do(self, *ops: Op, at: int = 1000, author: str = "ann@pam", reason: str = "", version: int = 2) -> int:
        for op in ops:
            self.index += 1
            envelope = Envelope(
                op, author=author, source="10.0.0.9", node=N1, reason=reason, time_ms=at * 1000, version=version
            )
            self.state, result, self.events = apply(self.state, envelope, self.index)
            assert isinstance(result, Done), (op, result)
        return self.index

    def contents(self, path: str) -> list[tuple[Kind, bytes | None]]:
        return [
            (version.kind, version.content) for version in history.versions(self.state.history, self.state.root, path)
        ]

    def at(self, path: str, index: int) -> bytes | None:
        return history.content_at(self.state.history, self.state.root, path, index)


def flat(root: Directory | None) -> dict[str, bytes | None]:
    assert root is not None
    return {join(at): node.content if isinstance(node, File) else None for at, node in walk(root)}


def test_every_change_says_who_when_why_and_what() -> None:
    story = Story()
    story.do(Write("a", b"1"), author="ann@pam", at=1000)
    story.do(Write("a", b"2"), author="bob@pam", at=2000, reason="because")
    story.do(Delete("a"), at=3000)
    first, second, third = history.versions(story.state.history, story.state.root, "a")
    assert (first.index, first.author, first.time_ms, first.content) == (1, "ann@pam", 1_000_000, b"1")
    assert (second.author, second.reason, second.source, second.node) == ("bob@pam", "because", "10.0.0.9", N1)
    assert (third.kind, third.content, third.is_there) == (Kind.delete, None, False)
    assert [story.at("a", index) for index in range(4)] == [None, b"1", b"2", None]


def test_a_write_of_what_is_there_is_none() -> None:
    story = Story()
    version = story.do(Write("a", b"1"))
    story.do(Write("a", b"1"), at=5000)
    assert story.events == ()
    node = lookup(story.state.root, ("a",))
    assert node is not None and (node.version, node.mtime) == (version, 1000)
    story.do(Touch("a", 1000))
    assert story.events == ()
    assert len(story.state.history) == 1
    refused = check(story.state, Envelope(Write("a", b"1", expected_version=version + 1)))
    assert refused is not None and refused.code == "stale"
    story.do(Touch("a", 1001))
    assert story.contents("a") == [(Kind.write, b"1"), (Kind.touch, b"1")]


def test_entries_of_the_old_format_mean_what_they_meant_and_history_begins_after_them() -> None:
    story = Story()
    story.do(Write("a", b"1"), version=1)
    again = story.do(Write("a", b"1"), version=1)
    node = lookup(story.state.root, ("a",))
    assert node is not None and node.version == again
    assert len(story.state.history) == 0
    story.do(Write("a", b"2"))
    assert story.state.history.since == again
    assert story.contents("a") == [(Kind.earlier, b"1"), (Kind.write, b"2")]
    # Mixed logs go on being recorded, under the rules of each entry.
    story.do(Write("a", b"2"), version=1)
    assert len(story.state.history) == 2


def test_a_file_is_followed_to_where_it_came_from() -> None:
    story = Story()
    story.do(MemberPut(N1, "n1", "10.0.0.1"), Mkdir("nodes/n2/lxc", parents=True))
    story.do(Write("nodes/n1/lxc/100.conf", b"1"), Write("nodes/n1/lxc/100.conf", b"2"))
    moved = story.do(Move("nodes/n1/lxc/100.conf", "nodes/n2/lxc/100.conf"))
    story.do(Write("nodes/n2/lxc/100.conf", b"3"))
    found = history.versions(story.state.history, story.state.root, "nodes/n2/lxc/100.conf")
    assert [version.content for version in found] == [b"1", b"2", b"2", b"3"]
    assert found[2].other_path == "nodes/n1/lxc/100.conf"
    assert story.at("nodes/n2/lxc/100.conf", moved - 1) == b"2"
    assert [version.path for version in found[:2]] == ["nodes/n1/lxc/100.conf"] * 2
    # The place that it left remembers as well.
    assert story.contents("nodes/n1/lxc/100.conf")[-1] == (Kind.move, None)


def test_a_file_replaced_by_a_renamed_one_keeps_its_own_past() -> None:
    story = Story()
    story.do(Write("a", b"1"), Write("a.tmp", b"half"), Write("a.tmp", b"2"), Move("a.tmp", "a", replace=True))
    assert story.contents("a") == [(Kind.write, b"1"), (Kind.move, b"2")]
    # An editor that first moves the old one aside.
    story.do(Move("a", "a~"), Write("a", b"3"))
    assert [content for _kind, content in story.contents("a")] == [b"1", b"2", None, b"3"]


def test_what_was_in_a_directory_that_moved_or_went_is_still_known() -> None:
    story = Story()
    story.do(Mkdir("d"), Write("d/f", b"1"), Move("d", "e"), Write("e/f", b"2"), Delete("e", recursive=True))
    assert story.contents("e/f") == [(Kind.write, b"1"), (Kind.move, b"1"), (Kind.write, b"2"), (Kind.delete, None)]
    assert story.contents("d/f") == [(Kind.write, b"1"), (Kind.move, None)]
    assert history.names(story.state.history, story.state.root, ()) == {"d": True, "e": True}
    assert history.names(story.state.history, story.state.root, ("e",)) == {"f": False}
    assert flat(history.tree_at(story.state.history, story.state.root, 4)) == {"": None, "e": None, "e/f": b"2"}


def test_renewals_of_locks_are_not_recorded() -> None:
    story = Story()
    story.do(Mkdir("priv/lock/x", parents=True))
    before = len(story.state.history)
    renewed = story.do(Touch("priv/lock/x"))
    assert len(story.state.history) == before
    story.do(Unlock("priv/lock/x", renewed))
    assert [record.kind for record in story.state.history][-1] == Kind.unlock


def test_a_removed_members_directory_can_be_undone() -> None:
    story = Story()
    before = story.do(MemberPut(N1, "n1", "10.0.0.1"), Write("nodes/n1/config", b"x"))
    held = flat(story.state.root)
    story.do(MemberRemove(N1))
    assert flat(history.tree_at(story.state.history, story.state.root, before)) == held


def test_history_is_bounded_by_number_by_bytes_and_by_age() -> None:
    story = Story(Settings(history_changes=3))
    story.do(*(Write("a", b"%d" % number) for number in range(10)))
    assert [content for _kind, content in story.contents("a")] == [b"6", b"7", b"8", b"9"]
    assert story.state.history.since == 7
    story = Story(Settings(history_bytes=1000))
    story.do(*(Write("a", b"%d" % number * 400) for number in range(10)))
    assert story.state.history.cost_bytes <= 1000
    assert len(story.state.history) == 2
    story = Story(Settings(history_days=2))
    story.do(Write("a", b"1"), at=1000)
    story.do(Write("a", b"2"), at=1000 + DAY_S)
    story.do(Write("a", b"3"), at=1001 + 2 * DAY_S)
    assert story.contents("a") == [(Kind.earlier, b"1"), (Kind.write, b"2"), (Kind.write, b"3")]


@pytest.mark.parametrize("off", [{"history_days": 0}, {"history_bytes": 0}, {"history_changes": 0}])
def test_a_bound_of_nothing_keeps_nothing(off: dict[str, int]) -> None:
    story = Story()
    story.do(Write("a", b"1"), Write("b", b""), Configure(**off))
    assert len(story.state.history) == 0
    story.do(Write("c", b""))
    assert (len(story.state.history), story.state.history.since) == (0, story.index)


def test_the_records_of_one_command_are_forgotten_together() -> None:
    story = Story(Settings(history_changes=2))
    story.do(Write("d/e/f", b"1", parents=True))
    assert (len(story.state.history), story.state.history.since) == (0, 1)


def test_a_state_that_was_overtaken_keeps_its_own_history() -> None:
    story = Story()
    story.do(Write("a", b"1"))
    held = story.state
    story.do(Write("a", b"2"))
    other, _result, _events = apply(held, Envelope(Write("a", b"other")), 2)
    check(held, Envelope(Write("a", b"checked")))
    assert [record.after.content for record in other.history if isinstance(record.after, File)] == [b"1", b"other"]
    assert [content for _kind, content in story.contents("a")] == [b"1", b"2"]
    assert len(held.history) == 1


def test_blame_names_who_brought_each_line() -> None:
    story = Story()
    story.do(Write("a", b"one\ntwo\nthree\n"), author="ann@pam")
    story.do(Write("a", b"one\n2\nthree\nfour\n"), author="bob@pam", reason="numbers")
    story.do(Write("a", b"zero\none\n2\nthree\nfour\n"), author="eve@pam")
    lines = history.blame(story.state.history, story.state.root, "a")
    assert [(line.text, line.author) for line in lines] == [
        (b"zero\n", "eve@pam"),
        (b"one\n", "ann@pam"),
        (b"2\n", "bob@pam"),
        (b"three\n", "ann@pam"),
        (b"four\n", "bob@pam"),
    ]
    assert lines[2].reason == "numbers"
    story.do(Delete("a"))
    assert history.blame(story.state.history, story.state.root, "a") == ()
    story.do(Write("a", b"".join(line.text for line in lines)))
    assert history.blame(story.state.history, story.state.root, "a") == lines


def test_changes_below_a_directory_newest_first() -> None:
    story = Story()
    story.do(Write("x/f", b"1", parents=True), Write("y", b""), Move("x/f", "y", replace=True), Delete("x"))
    found = [record.index for record in history.changes(story.state.history, "x")]
    assert found == [4, 3, 1, 1]
    assert [record.index for record in history.changes(story.state.history, "x", before_index=3)] == [1, 1]
    assert [record.index for record in history.changes(story.state.history, "y")] == [3, 2]


def test_a_snapshot_writes_each_content_once() -> None:
    story = Story()
    big, other = b"b" * 50_000, b"o" * 50_000
    story.do(Write("a", big), Write("a", other), Write("a", big), Write("b", big), Move("a", "c"))
    taken = b"".join(snapshot.encode(story.state))
    assert 100_000 < len(taken) < 152_000
    restored = snapshot.decode([taken])
    assert restored == story.state
    assert b"".join(snapshot.encode(restored)) == taken
