"""The state by tables: commands in, results out. No replica, no clock."""

import gc
from collections.abc import Sequence

import pytest
from msgspec import structs
from msgspec.structs import replace

from clusterfs import rules, usage
from clusterfs.commands import (
    Configure,
    Delete,
    Envelope,
    LeaseAcquire,
    LeaseFence,
    LeaseRenew,
    LeaseRest,
    MemberPut,
    MemberRemove,
    MemberRename,
    Mkdir,
    Move,
    Op,
    Touch,
    Unlock,
    Write,
)
from clusterfs.outcomes import Code, Done, MembersChanged, Refusal, Result
from clusterfs.state import REMEMBERED_CLIENTS, REMEMBERED_RESULTS, State, apply, check
from clusterfs.tree import Directory, File, lookup

N1 = "11111111-1111-4111-8111-111111111111"
N2 = "22222222-2222-4222-8222-222222222222"
N3 = "33333333-3333-4333-8333-333333333333"


class Story:
    """A log being written, one command after the other; times in seconds."""

    def __init__(self) -> None:
        self.state = State()
        self.index = 0

    def do(self, op: Op, *, node: str = N1, at: int = 1000, client: str = "", seq: int = 0) -> Result:
        self.index += 1
        envelope = Envelope(op, client=client, seq=seq, node=node, time_ms=at * 1000)
        self.state, result, self.events = apply(self.state, envelope, self.index)
        return result

    def must(self, *ops: Op) -> Done:
        for op in ops:
            result = self.do(op)
            assert isinstance(result, Done), (op, result)
        return result

    def refused(self, op: Op, **more: object) -> Code:
        before = (self.state.root, self.state.members, self.state.leases)
        result = self.do(op, **more)  # type: ignore[arg-type]
        assert isinstance(result, Refusal), (op, result)
        assert (self.state.root, self.state.members, self.state.leases) == before
        return result.code

    def file(self, path: str) -> File:
        node = lookup(self.state.root, tuple(path.split("/")))
        assert isinstance(node, File)
        return node

    def has(self, path: str) -> bool:
        return lookup(self.state.root, tuple(path.split("/"))) is not None


@pytest.fixture
def story() -> Story:
    story = Story()
    story.must(MemberPut(N1, "n1", "10.0.0.1"), MemberPut(N2, "n2", "10.0.0.2"))
    return story


def test_a_version_is_the_log_index_of_the_last_change_and_placement_that_of_the_place(story: Story) -> None:
    made = story.must(Write("a", b"1"))
    again = story.must(Write("a", b"2"))
    moved = story.must(Move("a", "b"))
    assert (made.version, made.placement) == (made.index, made.index)
    assert (again.version, again.placement) == (again.index, made.index)
    assert (moved.version, moved.placement) == (moved.index, moved.index)
    assert story.file("b") == File(b"2", moved.index, moved.index, 1000)


def test_what_is_below_a_moved_directory_is_in_a_new_place_as_well(story: Story) -> None:
    story.must(Mkdir("d"), Write("d/f", b""), Move("d", "e"))
    assert story.file("e/f").placement == story.index


def test_a_write_with_a_stale_version_changes_nothing(story: Story) -> None:
    first = story.must(Write("a", b"1")).version
    second = story.must(Write("a", b"2", expected_version=first)).version
    assert story.refused(Write("a", b"3", expected_version=first)) == Code.stale
    assert story.refused(Write("gone", b"", expected_version=7)) == Code.stale
    assert story.refused(Delete("a", expected_version=first)) == Code.stale
    assert story.refused(Move("a", "b", expected_version=first)) == Code.stale
    story.must(Delete("a", expected_version=second))


@pytest.mark.parametrize(
    ("prepare", "op", "code"),
    [
        ([Write("f", b"")], Write("f", b"", absent=True), Code.exists),
        ([Write("f", b"")], Mkdir("f"), Code.exists),
        ([Write("f", b"")], Write("f/x", b""), Code.not_directory),
        ([Write("f", b"")], Write("f/x/y", b"", parents=True), Code.not_directory),
        ([Write("f", b"")], Delete("f", only="directory"), Code.not_directory),
        ([], Write("no/x", b""), Code.not_found),
        ([], Delete("no"), Code.not_found),
        ([], Touch("no"), Code.not_found),
        ([], Write("", b""), Code.is_directory),
        ([Mkdir("d")], Write("d", b""), Code.is_directory),
        ([Mkdir("d")], Delete("d", only="file"), Code.is_directory),
        ([Mkdir("d"), Write("d/f", b"")], Delete("d"), Code.not_empty),
        ([Write("f", b""), Mkdir("d")], Move("f", "d", replace=True), Code.is_directory),
        ([Write("f", b""), Mkdir("d")], Move("d", "f", replace=True), Code.not_directory),
        ([Mkdir("d"), Mkdir("e"), Write("e/f", b"")], Move("d", "e", replace=True), Code.not_empty),
        ([Write("f", b""), Write("g", b"")], Move("f", "g"), Code.exists),
        ([Mkdir("d")], Move("d", "d/e"), Code.invalid),
        ([], Touch(""), Code.access),
        ([Write("f", b"")], Touch("f", -1), Code.invalid),
        ([], Write(".version", b""), Code.access),
        ([], Mkdir("local"), Code.access),
        ([Write("f", b"")], Move("f", ".members", replace=True), Code.access),
        ([], Delete("nodes", recursive=True), Code.access),
        ([], Delete("nodes/n1", recursive=True), Code.access),
        ([], Delete("priv/lock", recursive=True), Code.access),
        ([], Move("nodes/n1", "nodes/other"), Code.access),
        ([], Write("big", bytes(rules.MAX_FILE_BYTES + 1)), Code.file_too_big),
    ],
)
def test_refusals(story: Story, prepare: Sequence[Op], op: Op, code: Code) -> None:
    for step in prepare:
        story.must(step)
    assert check(story.state, Envelope(op, node=N1)) is not None
    assert story.refused(op) == code


def test_a_directory_moves_with_everything_in_it(story: Story) -> None:
    story.must(Mkdir("d"), Mkdir("d/e"), Write("d/e/f", b"x"), Mkdir("empty"), Move("d", "empty", replace=True))
    assert not story.has("d")
    assert story.file("empty/e/f").content == b"x"


def test_a_failed_rename_over_an_empty_directory_leaves_it_there(story: Story) -> None:
    """pmxcfs lost the target of such a rename, and its database with it."""
    story.must(Mkdir("t"), Mkdir("t/src"), Write("t/src/f", b""), Mkdir("t/dst"), Write("t/dst/g", b""))
    assert story.refused(Move("t/src", "t/dst", replace=True)) == Code.not_empty
    assert story.refused(Mkdir("t/dst")) == Code.exists
    assert story.has("t/src/f")


@pytest.mark.parametrize("other", ["nodes/n2/qemu-server/100.conf", "nodes/n1/lxc/100.conf", "nodes/n2/lxc/100.conf"])
def test_a_vmid_exists_once_whatever_its_node_and_type(story: Story, other: str) -> None:
    home = "nodes/n1/qemu-server/100.conf"
    story.must(Write(home, b"a"), Write(home, b"b"), Write("tmp", b""))
    assert story.refused(Write(other, b"")) == Code.exists
    assert story.refused(Move("tmp", other, replace=True)) == Code.exists
    story.must(Move("tmp", home, replace=True))
    story.must(Move(home, other))
    assert story.refused(Write(home, b"")) == Code.exists


def test_a_directory_with_a_taken_vmid_does_not_become_a_guest_directory(story: Story) -> None:
    story.must(Write("nodes/n1/qemu-server/100.conf", b""))
    story.must(Mkdir("x"), Mkdir("x/qemu-server"), Write("x/qemu-server/100.conf", b""))
    assert story.refused(Move("x", "nodes/n3")) == Code.exists
    story.must(Delete("nodes/n1/qemu-server/100.conf"), Move("x", "nodes/n3"))


def test_a_renewal_of_a_lock_is_its_makers_only_and_never_backwards(story: Story) -> None:
    story.must(Mkdir("priv/lock/x"))
    assert story.refused(Touch("priv/lock/x"), node=N2) == Code.access
    assert isinstance(story.do(Touch("priv/lock/x", 2000)), Done)
    assert story.refused(Touch("priv/lock/x", 1999)) == Code.access


def test_breaking_a_lock_fails_when_it_was_renewed_meanwhile(story: Story) -> None:
    seen = story.must(Mkdir("priv/lock/x")).version
    renewed = story.must(Touch("priv/lock/x")).version
    assert story.refused(Unlock("priv/lock/x", seen)) == Code.stale
    story.must(Unlock("priv/lock/x", renewed))
    assert not story.has("priv/lock/x")
    story.must(Mkdir("elsewhere"))
    assert story.refused(Unlock("elsewhere", story.index)) == Code.invalid


def test_locks_are_not_renamed_but_anybody_removes_them(story: Story) -> None:
    story.must(Mkdir("priv/lock/x"), Mkdir("d"))
    assert story.refused(Move("priv/lock/x", "priv/lock/y")) == Code.access
    assert story.refused(Move("d", "priv/lock/y")) == Code.access
    assert story.refused(Mkdir("priv/lock/x"), node=N2) == Code.exists
    assert isinstance(story.do(Delete("priv/lock/x", only="directory"), node=N2), Done)


def test_the_store_refuses_to_grow_beyond_its_limits_and_lets_itself_be_emptied(story: Story) -> None:
    story.must(Write("a", b"x" * 10))
    full = structs.replace(story.state.root, size=rules.MAX_STORE_BYTES)
    story.state = replace(story.state, root=full)
    assert story.refused(Write("b", b"1")) == Code.store_full
    assert story.refused(Write("a", b"x" * 11)) == Code.store_full
    story.must(Write("a", b"x" * 9))
    many = structs.replace(story.state.root, size=0, count=rules.MAX_ENTRIES)
    story.state = replace(story.state, root=many)
    assert story.refused(Write("b", b"")) == Code.too_many_entries
    assert story.refused(Mkdir("b")) == Code.too_many_entries
    story.must(Write("a", b"y"), Delete("a"))


def test_limits_are_what_the_cluster_has_configured(story: Story) -> None:
    story.must(Write("a", bytes(5000)), Configure(max_file_bytes=4096, max_entries=1000))
    assert story.refused(Write("b", bytes(4097))) == Code.file_too_big
    story.must(
        Write("a", bytes(5000)), Write("b", bytes(4096)), Configure(max_file_bytes=2 << 20), Write("b", bytes(2 << 20))
    )
    assert story.state.settings.max_entries == 1000
    for wrong in (Configure(max_file_bytes=4 << 20), Configure(history_days=-1), Configure(max_entries=1)):
        assert story.refused(wrong) == Code.invalid


def test_a_shorter_history_is_trimmed_at_once(story: Story) -> None:
    story.must(Write("a", b"1"), Write("a", b"2"), Configure(history_changes=1))
    assert len(story.state.history) == 1
    story.must(Configure(history_changes=0))
    assert len(story.state.history) == 0


def test_a_full_store_is_told_once_until_it_was_emptier(story: Story) -> None:
    def notices(count: int) -> tuple[str, ...]:
        nonlocal told
        state = replace(story.state, root=structs.replace(story.state.root, count=count))
        told, said = usage.notices(told, state)
        assert bool(usage.warnings(state)) == (count >= 800)
        return said

    told: frozenset[str] = frozenset()
    story.must(Configure(max_entries=1000))
    assert notices(799) == ()
    assert notices(800) == ("the store holds 800 entries, 80 % of its limit of 1000",)
    assert notices(900) == notices(799) == notices(760) == notices(810) == ()
    assert notices(749) == ()
    assert len(notices(800)) == 1


def test_a_copy_of_a_command_is_answered_and_not_applied(story: Story) -> None:
    first = story.do(Write("a", b"", absent=True), client="c", seq=1)
    again = story.do(Write("a", b"", absent=True), client="c", seq=1)
    assert first == again
    assert isinstance(first, Done)
    assert story.events == ()
    refusal = story.do(Mkdir("a"), client="c", seq=2)
    story.must(Delete("a"))
    assert story.do(Mkdir("a"), client="c", seq=2) == refusal
    assert not story.has("a")


def test_a_command_too_old_to_be_remembered_is_refused_rather_than_applied_twice(story: Story) -> None:
    story.do(Write("a", b""), client="c", seq=1)
    for seq in range(2, REMEMBERED_RESULTS + 2):
        story.do(Write("b", b""), client="c", seq=seq)
    assert story.refused(Write("a", b"again"), client="c", seq=1) == Code.forgotten
    assert len(story.state.clients["c"].results) == REMEMBERED_RESULTS


def test_memory_of_clients_is_bounded(story: Story) -> None:
    for number in range(REMEMBERED_CLIENTS + 5):
        story.do(Write("a", b""), client=f"c{number}", seq=1)
    assert len(story.state.clients) == REMEMBERED_CLIENTS
    assert "c0" not in story.state.clients


def test_time_comes_with_the_command_and_never_runs_backwards(story: Story) -> None:
    story.do(Write("a", b""), at=5000)
    story.do(Write("b", b""), at=10)
    assert story.file("b").mtime == 5000


def test_a_member_gets_its_directories_and_a_number_that_is_never_used_again(story: Story) -> None:
    for path in ("nodes/n2", "nodes/n2/priv", "nodes/n2/qemu-server", "nodes/n2/lxc", "priv/lock"):
        node = lookup(story.state.root, tuple(path.split("/")))
        assert isinstance(node, Directory), path
    assert story.state.members[N2].number == 2
    story.must(MemberRemove(N2))
    assert any(isinstance(event, MembersChanged) for event in story.events)
    assert not story.has("nodes/n2")
    assert story.must(MemberPut(N3, "n2", "10.0.0.2")).number == 3
    assert story.refused(MemberPut(N2.replace("2", "4"), "n4", "10.0.0.4", 2)) == Code.exists


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (MemberPut("33333333-3333-4333-8333-333333333333", "n1", "10.0.0.3"), Code.exists),
        (MemberPut("33333333-3333-4333-8333-333333333333", "N1", "10.0.0.3"), Code.exists),
        (MemberPut(N2, "other", "10.0.0.2"), Code.exists),
        (MemberPut("no uuid", "n3", "10.0.0.3"), Code.invalid),
        (MemberPut("33333333-3333-4333-8333-333333333333", "-", "10.0.0.3"), Code.invalid),
        (MemberPut("33333333-3333-4333-8333-333333333333", "n3", ""), Code.invalid),
        (MemberPut("33333333-3333-4333-8333-333333333333", "n3", "10.0.0.3", 65_536), Code.invalid),
        (MemberRemove("33333333-3333-4333-8333-333333333333"), Code.not_found),
    ],
)
def test_members_that_cannot_be(story: Story, op: Op, code: Code) -> None:
    assert story.refused(op) == code


def test_a_witness_is_a_member_without_a_place_in_the_tree(story: Story) -> None:
    assert story.must(MemberPut(N3, "w1", "10.0.0.9", witness=True)).number == 3
    assert story.state.members[N3].witness
    assert not story.has("nodes/w1")
    assert story.events == (MembersChanged(),)


def test_a_renamed_members_guests_stay_in_their_generation(story: Story) -> None:
    story.must(Write("nodes/n2/lxc/100.conf", b"x"))
    before = story.file("nodes/n2/lxc/100.conf")
    story.must(MemberRename(N2, "rack2"))
    assert story.file("nodes/rack2/lxc/100.conf") == before
    assert not story.has("nodes/n2")
    assert story.state.members[N2].name == "rack2"
    assert any(isinstance(event, MembersChanged) for event in story.events)
    story.must(MemberRename(N2, "rack2"), MemberRename(N2, "Rack2"), Write("nodes/Rack2/lxc/100.conf", b"y"))


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (MemberRename(N2, "n1"), Code.exists),
        (MemberRename(N2, "N1"), Code.exists),
        (MemberRename(N2, "left"), Code.exists),
        (MemberRename(N2, "-"), Code.invalid),
        (MemberRename(N3, "n3"), Code.not_found),
    ],
)
def test_names_that_a_member_cannot_take(story: Story, op: Op, code: Code) -> None:
    story.must(Mkdir("nodes/left", parents=True))
    assert story.refused(op) is code


def test_who_was_removed_does_not_come_back_under_the_same_uuid(story: Story) -> None:
    """Its certificate carries the UUID: this is what revokes it, on every node and for ever."""
    story.must(MemberRemove(N2))
    assert story.state.removed[N2].name == "n2"
    assert story.refused(MemberPut(N2, "n2", "10.0.0.2")) is Code.exists
    assert story.refused(MemberPut(N2, "other", "10.0.0.3")) is Code.exists


def test_a_members_address_can_change(story: Story) -> None:
    story.must(MemberPut(N2, "n2", "10.0.0.9"))
    assert story.state.members[N2].address == "10.0.0.9"
    assert story.state.members[N2].number == 2


def test_a_removed_members_files_are_archived_and_its_guests_stay_to_be_moved(story: Story) -> None:
    story.must(Write("nodes/n2/config", b"x"), Write("nodes/n2/priv/key", b"k"), MemberRemove(N2))
    assert story.file("nodes-archive/n2.2/priv/key").content == b"k"
    assert not story.has("nodes/n2")
    assert not story.has("nodes-archive/n2.2/lxc")
    story.must(MemberPut(N3, "n2", "10.0.0.2"), Write("nodes/n2/lxc/100.conf", b"x"), MemberRemove(N3))
    assert story.file("nodes/n2/lxc/100.conf").content == b"x"
    story.must(Move("nodes/n2/lxc/100.conf", "nodes/n1/lxc/100.conf"))


def test_a_lease_is_acquired_renewed_and_fenced_for_ever(story: Story) -> None:
    assert story.must(LeaseAcquire(N1)).number == 1
    assert story.must(LeaseRenew(N1, 1)).number == 1
    assert story.must(LeaseRenew(N1, 1)).number == 2
    assert story.refused(LeaseFence(N1, 1, 1)) == Code.stale
    story.must(LeaseFence(N1, 1, 2), LeaseFence(N1, 1, 2))
    assert story.refused(LeaseRenew(N1, 1)) == Code.fenced
    assert story.must(LeaseAcquire(N1)).number == 2
    assert story.refused(LeaseRenew(N1, 1)) == Code.fenced
    assert story.refused(LeaseFence(N1, 1, 2)) == Code.stale
    story.must(LeaseRenew(N1, 2))


def test_a_confirmed_fence_asks_for_no_renewal_but_for_the_incarnation(story: Story) -> None:
    story.must(LeaseAcquire(N1), LeaseRenew(N1, 1), LeaseRenew(N1, 1))
    story.must(LeaseFence(N1, 1, 0, "fence_ipmilan"))
    assert story.refused(LeaseRenew(N1, 1)) == Code.fenced
    story.must(LeaseAcquire(N1))
    assert story.refused(LeaseFence(N1, 1, 0, "fence_ipmilan")) == Code.stale, "it was switched on again since"
    story.must(LeaseRenew(N1, 2))


def test_a_lease_that_was_given_back_is_renewed_no_more(story: Story) -> None:
    story.must(LeaseAcquire(N1), LeaseRest(N1, 1))
    assert story.refused(LeaseRenew(N1, 1)) == Code.fenced
    assert story.must(LeaseAcquire(N1)).number == 2, "incarnations are never used twice"
    assert story.refused(LeaseRest(N1, 1)) == Code.fenced, "one that comes late does not end the next life"
    story.must(LeaseRenew(N1, 2))


def _terms(story: Story) -> tuple[int, int]:
    lease = story.state.leases[N1]
    return lease.pause_ms, lease.takeover_ms


def test_a_lease_has_the_terms_of_the_call_that_its_holder_sent_last(story: Story) -> None:
    story.must(LeaseAcquire(N1, 8000, 18000))
    story.must(LeaseRenew(N1, 1, 1000, 26000, 53000))
    assert _terms(story) == (26000, 53000)
    story.must(LeaseRenew(N1, 1, 900, 3500, 9509))
    assert _terms(story) == (26000, 53000), "it was sent before the other one and comes after it"
    story.must(LeaseRenew(N1, 1, 2000, 3500, 9509), LeaseRenew(N1, 1, 1000, 26000, 53000))
    assert _terms(story) == (3500, 9509)


def test_a_late_acquisition_does_not_shorten_what_an_answered_one_allowed(story: Story) -> None:
    story.must(LeaseAcquire(N1, 26000, 53000), LeaseAcquire(N1, 3500, 9509))
    assert _terms(story) == (26000, 53000)
    story.must(LeaseRenew(N1, 2, 1, 3500, 9509))
    assert _terms(story) == (3500, 9509)


@pytest.mark.parametrize("terms", [(0, 9509), (9509, 9509), (3500, 600_001), (-1, 5)], ids=str)
def test_terms_that_nobody_can_mean_are_refused(story: Story, terms: tuple[int, int]) -> None:
    assert story.refused(LeaseAcquire(N1, *terms)) == Code.invalid
    story.must(LeaseAcquire(N1))
    assert story.refused(LeaseRenew(N1, 1, 5, *terms)) == Code.invalid


def test_leases_are_for_members_only(story: Story) -> None:
    stranger = "33333333-3333-4333-8333-333333333333"
    assert story.refused(LeaseAcquire(stranger)) == Code.not_found
    assert story.refused(LeaseRenew(stranger, 1)) == Code.fenced
    assert story.refused(LeaseFence(stranger, 1, 0)) == Code.not_found
    story.must(LeaseAcquire(N2), MemberRemove(N2))
    assert story.refused(LeaseRenew(N2, 1)) == Code.fenced


def test_a_renewal_makes_no_event_and_no_version(story: Story) -> None:
    story.must(LeaseAcquire(N1))
    root = story.state.root
    story.must(LeaseRenew(N1, 1))
    assert story.events == ()
    assert story.state.root is root


def test_the_garbage_collector_does_not_look_through_the_tree_and_its_past(story: Story) -> None:
    """With 100,000 files a collection stopped the leader for hundreds of milliseconds."""
    story.must(Mkdir("d"))
    gc.collect()
    before = len(gc.get_objects())
    story.must(*(Write(f"d/{number}", b"%d" % number) for number in range(2000)))
    story.must(*(Write(f"d/{number}", b"new") for number in range(2000)))
    gc.collect()
    assert len(gc.get_objects()) - before < 200
