"""All nodes apart for a while, and together again: who is there again is not fenced, who is not is."""

from dataclasses import dataclass, field, replace
from itertools import combinations

import pytest

from ha.resources import Resource
from ha.sim.rest import unsettled
from ha.sim.store import Answer, Command, Done, Fence
from ha.sim.world import World


@dataclass
class Cut:
    """A cluster at rest; `fences`: when and who, since then."""

    seed: int
    fences: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = world = World(self.seed, events=())
        world.store.loss = world.store.slowness = 0.0
        for host in world.hosts.values():
            host.faults = replace(host.faults, start_fails=0.0, kill_hangs=0.0, migration_fails=0.0, reply_s=0.01)
        world._found()
        world.edit(lambda held: {sid: Resource(sid) for sid in world.sids})
        self.run(70.0)
        commit = world.store.on_commit

        def committed(command: Command, answer: Answer) -> None:
            if isinstance(command, Fence) and isinstance(answer, Done):
                self.fences.append((world.timeline.now, command.node))
            commit(command, answer)

        world.store.on_commit = committed

    def run(self, span_s: float) -> None:
        self.world.timeline.run_until(self.world.timeline.now + span_s)

    def cut_all(self, span_s: float) -> None:
        self.world.cut_edges({frozenset(pair) for pair in combinations(sorted(self.world.hosts), 2)}, span_s)

    def holder(self) -> str:
        """A node that guests would have to leave; not the leader."""
        held = [one.node for one in self.world.checks.services().values() if one.node != self.world.store.leader]
        return held[0] if held else ""

    def takeover_s(self, node: str) -> float:
        return self.world.store.truth.leases[node].terms.takeover_after_s


@pytest.mark.parametrize("span_s", [15.0, 40.0])
def test_nodes_that_are_back_after_a_total_cut_are_not_fenced(span_s: float) -> None:
    for seed in range(6):
        cut = Cut(seed)
        cut.cut_all(span_s)
        # Long enough for guests that wait for each other by their `startup` options.
        cut.run(span_s + 260.0)
        assert cut.fences == [], f"seed {seed}"
        assert not unsettled(cut.world.checks), f"seed {seed}"


def test_who_died_in_a_total_cut_is_fenced_when_the_others_have_renewed() -> None:
    dead = 0
    for seed in range(8):
        cut = Cut(seed)
        if not (victim := cut.holder()):
            continue
        dead += 1
        pause_s = cut.world.store.truth.leases[victim].terms.pause_after_s
        cut.world.hosts[victim].power_off("for good")
        cut.cut_all(40.0)
        healed_at = cut.world.timeline.now + 40.0
        cut.run(80.0)
        assert [node for _, node in cut.fences] == [victim], f"seed {seed}"
        assert cut.fences[0][0] - healed_at < pause_s + 4.0, f"seed {seed}"
    assert dead > 3


def test_who_dies_without_a_cut_is_fenced_at_t_as_ever_the_leader_too() -> None:
    for seed in range(8):
        cut = Cut(seed)
        victims = [cut.holder(), cut.world.store.leader or ""]
        for victim in filter(None, victims[seed % 2 :][:1]):
            died_at, takeover_s = cut.world.timeline.now, cut.takeover_s(victim)
            cut.world.hosts[victim].power_off("for good")
            cut.run(takeover_s + 10.0)
            late_s = [at - died_at - takeover_s for at, node in cut.fences if node == victim]
            is_needed = any(one.node == victim for one in cut.world.checks.services().values())
            assert len(late_s) == 1 or (not late_s and not is_needed), f"seed {seed}"
            assert not late_s or late_s[0] < 1.5, f"seed {seed}"
