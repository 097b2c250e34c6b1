"""Clients of the production state machine: they write, take locks, renew, come again with what they have sent, and watch."""

import random
from collections.abc import Callable

from raft_sim import Machine, Sim, SimNode
from sim_checks import Applied
from sim_store import Kept, SimStore, key_of, stamp

from clusterfs.commands import (
    Configure,
    Delete,
    Envelope,
    LeaseAcquire,
    LeaseFence,
    LeaseRenew,
    LockAcquire,
    LockBreak,
    LockRelease,
    MemberPut,
    Mkdir,
    Move,
    Op,
    SessionEnd,
    SessionRenew,
    Touch,
    Write,
    encode,
)
from clusterfs.lock_keeping import round_of_locks
from clusterfs.outcomes import Code, Done, Refusal, Result
from clusterfs.proposer import Author

LOCKS = ("x", "y")
PLACES = ("d/a", "d/b", "d/c", "nodes/one/qemu-server/100.conf", "nodes/two/qemu-server/100.conf")
MEMBERS = {"11111111-1111-4111-8111-111111111111": "one", "22222222-2222-4222-8222-222222222222": "two"}
# A leader looks for locks and sessions that have grown old every so many steps.
CHORES_EVERY = 40
NOT_NOW = Refusal(Code.refused, "it is on its way")


class StoreClients:
    def __init__(self, sim: Sim, luck: random.Random) -> None:
        self.sim, self.luck = sim, luck
        self.sequence = 0
        self.sent_at: dict[tuple[str, int], float] = {}
        # Wall clocks are set by hand and by NTP, in either direction.
        self.walls: dict[str, float] = {}
        self.jumps = luck.choice((0.0, 0.0, 2.0, 3600.0))
        self.hasty = luck.choice((0.0, 0.05, 0.3))
        self.ring = luck.choice((3, 30, 10_000))
        self.ttl_s = luck.choice((5, 5, 30))
        self.tokens: dict[str, int] = {}
        self.watched = 0
        sim.ledger.kept = Kept()
        sim.make_machine = self._machine
        sim.stamp = lambda uid, entry: stamp(entry, sim.now + self.walls.get(uid, 0.0))

    def _machine(self, sim: Sim, uid: str) -> Machine:
        node = sim.nodes[uid]
        return SimStore(
            uid,
            node.ledger,
            ring=self.ring,
            clock=lambda: node.clock(sim.now),
            now=lambda: sim.now,
            sent_at=self.sent_at,
        )

    def step(self, number: int) -> None:
        """Beside the writes: a watcher that goes from node to node, clocks that are set, the leader's chore."""
        luck, alive = self.luck, self.sim.alive()
        if number % 50 == 7 and alive:
            node = luck.choice(alive)
            if node.ledger is self.sim.ledger:
                self.watched = machine_of(node).watch(self.watched)
        if self.jumps and luck.randrange(100) == 0:
            self.walls[luck.choice(sorted(self.sim.nodes))] = luck.uniform(-self.jumps, self.jumps)
        if number % CHORES_EVERY == 0:
            for node in alive:
                self.chores(node)

    def chores(self, node: SimNode) -> None:
        consensus = node.consensus
        assert consensus is not None
        if not consensus._isLeader() or node.frozen_until > self.sim.now:
            return

        class _Proposer:
            """As the real one, but nobody waits."""

            @staticmethod
            def propose(op: Op, author: Author, *, deadline_s: float) -> Result:
                self.send(node, op, author.name)
                return NOT_NOW

        status = consensus.status(node.clock(self.sim.now))
        round_of_locks(machine_of(node), _Proposer, status, uid=node.uid)  # type: ignore[arg-type]

    def write(self, node: SimNode, number: int) -> None:
        luck = self.luck
        if luck.randrange(100) == 0:
            junk = b"\x02" + luck.randbytes(9)
            self.sim.send(node.uid, key_of(junk), junk)
            return
        if luck.random() < 0.4:
            self.make(node, str(number), b"x" * (luck.randrange(8) == 0) * luck.randrange(400))
            return
        self.send(node, *self._some(number))

    def make(self, node: SimNode, name: str, padding: bytes = b"") -> str:
        path, content = f"w/{name}", padding + name.encode()
        return self.send(node, Write(path, content, absent=True, parents=True), promises=(path, content))

    def _some(self, number: int) -> tuple[Op, str]:
        luck = self.luck
        place, other = luck.sample(PLACES, 2)
        name, session = luck.choice(LOCKS), luck.choice(("s1", "s2", "s3"))
        uid = luck.choice(sorted(MEMBERS))
        ops: tuple[Callable[[], Op], ...] = (
            lambda: Write(place, str(number).encode(), parents=luck.random() < 0.5),
            lambda: Write(place, b"again", expected_version=luck.randrange(60)),
            lambda: Delete(place),
            lambda: Move(place, other, replace=luck.random() < 0.5),
            lambda: Mkdir(f"priv/lock/{name}", parents=True),
            lambda: Delete(f"priv/lock/{name}"),
            lambda: Touch(place),
            lambda: LockAcquire(name, session, self.ttl_s, luck.random() < 0.8),
            lambda: LockAcquire(name, session, self.ttl_s),
            lambda: LockRelease(name, session),
            lambda: SessionRenew(session),
            lambda: SessionRenew(session),
            lambda: SessionEnd(session),
            lambda: LockBreak(name),
            lambda: MemberPut(uid, MEMBERS[uid], f"10.0.0.{luck.randrange(9)}"),
            lambda: LeaseAcquire(uid),
            lambda: LeaseRenew(uid, luck.randrange(3)),
            lambda: LeaseFence(uid, luck.randrange(3), luck.randrange(3)),
            lambda: Configure(history_changes=luck.choice((0, 5, 1000)), max_entries=luck.choice((300, 10_000))),
        )
        return luck.choice(ops)(), "root@pam"

    def send(self, node: SimNode, op: Op, author: str = "", promises: tuple[str, bytes] | None = None) -> str:
        """As `Proposer` does it: one name for the command, and the same bytes again while nobody knows what became of it."""
        sim, luck = self.sim, self.luck
        self.sequence += 1
        lock, token = "", 0
        if isinstance(op, Write) and promises is None and luck.random() < 0.3:
            lock = luck.choice(LOCKS)
            held = machine_of(node).state.locks.held.get(lock)
            if held is not None and held.holder is not None and luck.random() < 0.7:
                self.tokens[lock] = held.holder.token
            token = self.tokens.get(lock, 1)
        is_remembered = not isinstance(op, LeaseRenew | SessionRenew)
        client = f"{node.uid}.{node.life}"
        entry = encode(
            Envelope(op, client if is_remembered else "", self.sequence, author, client, lock=lock, token=token)
        )
        key = key_of(entry)
        self.sent_at[client, self.sequence] = sim.now
        ledger, life = node.ledger, node.life

        def again() -> None:
            if is_remembered and node.life == life and node.consensus is not None and luck.random() < 0.8:
                send()

        def answered(answer: Applied) -> None:
            # Made once and touched by nobody else: who is told that it is there finds it for ever.
            if promises is not None and isinstance(answer.result, Done):
                ledger.promised[promises[0]] = answer.index, promises[1]

        def send() -> None:
            sim.send(node.uid, key, entry, on_unknown=again, on_answer=answered)

        send()
        if is_remembered and luck.random() < self.hasty:
            other = luck.choice([one for one in sim.alive() if one.ledger is ledger])
            sim.send(other.uid, key, entry)
        return key


def machine_of(node: SimNode) -> SimStore:
    assert isinstance(node.machine, SimStore)
    return node.machine
