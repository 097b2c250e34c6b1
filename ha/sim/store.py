"""A model of the replicated store: one log in total order, a leader, and replicas that apply each at its own pace.

Votes, terms and disks are clusterfs' own simulation's matter. Here is what a user of the store can notice: no majority,
no commit; a call that is given up may still take effect later, or never; a replica may be behind; a leader that was
deposed does not know it yet. `State.apply` has the rules of the real store for files and leases.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from ha.leases import Terms
from ha.status import MANAGER_STATUS

from .timeline import Timeline

# A proposal that found no leader is tried again for this long, whether or not anybody still waits for it.
PERSISTENCE_S = 6.0
POLL_S = 0.2
ELECTION_S = (0.8, 2.5)
QUORATE_S = 1.0


@dataclass(frozen=True, slots=True)
class Write:
    """`version` 0: the file must not be there. `by`: a manager that takes a lock off."""

    path: str
    content: object
    version: int
    by: str = ""


@dataclass(frozen=True, slots=True)
class Remove:
    path: str
    version: int


@dataclass(frozen=True, slots=True)
class Move:
    """`by`: who asks for it, of those whom the checks tell apart."""

    path: str
    new_path: str
    version: int
    by: str = ""


@dataclass(frozen=True, slots=True)
class Acquire:
    node: str
    terms: Terms


@dataclass(frozen=True, slots=True)
class Renew:
    node: str
    incarnation: int
    sent_at: float
    terms: Terms


@dataclass(frozen=True, slots=True)
class Rest:
    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Fence:
    """`is_confirmed`: an agent has switched that life of the node off, so renewals do not matter."""

    node: str
    incarnation: int
    renewal: int
    is_confirmed: bool = False
    by: str = ""


Command = Write | Remove | Move | Acquire | Renew | Rest | Fence


@dataclass(frozen=True, slots=True)
class Done:
    number: int


@dataclass(frozen=True, slots=True)
class Refused:
    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer in time; the command may take effect yet."""


Answer = Done | Refused | Unknown
Reply = Callable[[Answer], None]


@dataclass(frozen=True, slots=True)
class File:
    content: object
    version: int


@dataclass(frozen=True, slots=True)
class Lease:
    incarnation: int
    terms: Terms
    sent_at: float = 0.0
    renewal: int = 0
    is_fenced: bool = False
    is_resting: bool = False


@dataclass(frozen=True, slots=True)
class Guards:
    """What the log refuses. Each that is left out is a mutation that the simulation must notice."""

    # A fence of a lease that was renewed meanwhile; a confirmation about an earlier life.
    of_fences: bool = True
    of_confirmations: bool = True
    # A renewal of a lease that was fenced.
    of_renewals: bool = True
    # A write of the manager's status that was decided on an older one.
    of_status: bool = True


@dataclass(slots=True)
class State:
    """What a replica has applied."""

    guards: Guards = Guards()
    index: int = 0
    # The index at which a file last changed: of two replicas with the same one, all files are the same.
    revision: int = 0
    files: dict[str, File] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)

    def apply(self, command: Command) -> Done | Refused:
        self.index += 1
        match command:
            case Write():
                held = self.files.get(command.path)
                is_stale = (held.version if held else 0) != command.version
                if is_stale and (self.guards.of_status or command.path != MANAGER_STATUS):
                    return Refused("stale")
                self.files[command.path] = File(command.content, self.index)
                self.revision = self.index
                return Done(self.index)
            case Remove():
                held = self.files.get(command.path)
                if held is None or held.version != command.version:
                    return Refused("stale")
                del self.files[command.path]
                self.revision = self.index
                return Done(self.index)
            case Move():
                held = self.files.get(command.path)
                if held is None or held.version != command.version or command.new_path in self.files:
                    return Refused("stale")
                del self.files[command.path]
                self.files[command.new_path] = File(held.content, self.index)
                self.revision = self.index
                return Done(self.index)
            case _:
                return self._apply_lease(command)

    def _apply_lease(self, command: Acquire | Renew | Rest | Fence) -> Done | Refused:
        held = self.leases.get(command.node)
        if isinstance(command, Acquire):
            terms = command.terms
            if held is not None and held.terms.takeover_after_s > terms.takeover_after_s:
                terms = held.terms
            lease = Lease((held.incarnation if held else 0) + 1, terms)
            self.leases[command.node] = lease
            return Done(lease.incarnation)
        if isinstance(command, Renew | Rest):
            is_over = held is not None and held.is_fenced and self.guards.of_renewals
            if held is None or is_over or held.incarnation != command.incarnation:
                return Refused("fenced")
            if isinstance(command, Rest):
                self.leases[command.node] = replace(held, is_resting=True)
                return Done(held.renewal)
            if held.is_resting:
                return Refused("fenced")
            is_news = command.sent_at >= held.sent_at
            self.leases[command.node] = Lease(
                held.incarnation,
                command.terms if is_news else held.terms,
                command.sent_at if is_news else held.sent_at,
                held.renewal + 1,
                held.is_fenced,
            )
            return Done(held.renewal + 1)
        if held is None:
            return Refused("not found")
        if command.is_confirmed:
            if self.guards.of_confirmations and held.incarnation != command.incarnation:
                return Refused("that life is over")
        elif self.guards.of_fences and (held.incarnation, held.renewal) != (command.incarnation, command.renewal):
            return Refused("the lease went on")
        self.leases[command.node] = replace(held, is_fenced=True)
        return Done(held.renewal)


@dataclass(slots=True)
class Entry:
    command: Command
    origin: str
    call: int


@dataclass(slots=True)
class Replica:
    name: str
    state: State
    # By call: who waits here for the answer.
    waiting: dict[int, Reply] = field(default_factory=dict)
    believes_to_lead: bool = False
    # As it last looked; a deposed leader's is stale for a moment.
    is_quorate: bool = False
    last_majority: float = 0.0
    # A leader decides only on a state that has all of what was committed before it.
    leads_from: int = 0
    # Lease renewals, by when this replica applied them, on its host's boot-time clock.
    renewed_at: dict[str, float] = field(default_factory=dict)


class Store:
    """`can_talk(a, b)`: both run and messages pass; `clock(name)`: a host's boot-time clock."""

    def __init__(
        self,
        timeline: Timeline,
        random: Random,
        names: tuple[str, ...],
        *,
        can_talk: Callable[[str, str], bool],
        clock: Callable[[str], float],
        guards: Guards = Guards(),
    ) -> None:
        self._timeline = timeline
        self._random = random
        self._names = names
        self._can_talk = can_talk
        self._clock = clock
        self._calls = 0
        self._leaderless_since: float | None = 0.0
        self._election_s = 0.3
        self.loss = 0.0
        self.slowness = 0.0
        # What no majority has taken is tried again by whoever leads next.
        self.forgets_nothing = False
        self.log: list[Entry] = []
        self.leader: str | None = None
        # As if one had applied everything at once: the truth that the checks go by.
        self.truth = State(guards)
        self.renewed_truly_at: dict[str, float] = {}
        self.replicas = {name: Replica(name, State(guards)) for name in names}
        self.on_commit: Callable[[Command, Answer], None] = lambda _command, _answer: None
        self._poll()

    def propose(self, origin: str, command: Command, reply: Reply, *, deadline_s: float) -> None:
        """`reply` is called once, after `origin` itself has applied the command, or with Unknown at the deadline."""
        self._calls += 1
        call = self._calls
        waiting = self.replicas[origin].waiting
        waiting[call] = reply

        def give_up() -> None:
            if (waiter := self.replicas[origin].waiting.pop(call, None)) is not None:
                waiter(Unknown())

        self._timeline.after(deadline_s, give_up)
        if self._random.random() >= self.loss:
            entry = Entry(command, origin, call)
            self._timeline.after(self._delay(), lambda: self._arrive(entry, self._timeline.now + PERSISTENCE_S))

    def has_majority(self, name: str) -> bool:
        can_talk = self._can_talk
        if not can_talk(name, name):
            return False
        heard = 1
        for other in self._names:
            if other != name and can_talk(name, other):
                heard += 1
        return heard * 2 > len(self._names)

    def is_leader(self, name: str) -> bool:
        """What the replica of this node says, which may be late."""
        replica = self.replicas[name]
        return replica.believes_to_lead and replica.state.index >= replica.leads_from

    def restart(self, name: str) -> None:
        """The log is on its disk; ages begin anew, callers are gone."""
        replica = self.replicas[name]
        replica.waiting.clear()
        replica.believes_to_lead = replica.is_quorate = False
        now = self._clock(name)
        replica.renewed_at = dict.fromkeys(replica.state.leases, now)
        if self.leader == name:
            self.leader, self._leaderless_since = None, self._timeline.now
            self._election_s = self._random.uniform(*ELECTION_S)

    def _delay(self) -> float:
        if self.slowness and self._random.random() < self.slowness:
            return self._random.uniform(0.2, 3.0)
        return self._random.uniform(0.002, 0.03)

    def _arrive(self, entry: Entry, until: float) -> None:
        if self._timeline.now > until:
            return
        leader = self.leader
        if leader is None or not self._can_talk(entry.origin, leader):
            self._timeline.after(self._random.uniform(0.1, 0.3), lambda: self._arrive(entry, until))
            return
        self._timeline.after(self._delay(), lambda: self._commit(entry, leader, until))

    def _commit(self, entry: Entry, leader: str, until: float) -> None:
        if self.leader != leader or not self.has_majority(leader):
            # Perhaps the next leader has it, perhaps it is lost.
            if self.forgets_nothing or self._random.random() < 0.5:
                self._timeline.after(self._delay(), lambda: self._arrive(entry, until))
            return
        self.log.append(entry)
        answer = self.truth.apply(entry.command)
        if isinstance(entry.command, Acquire | Renew) and isinstance(answer, Done):
            self.renewed_truly_at[entry.command.node] = self._timeline.now
        self.on_commit(entry.command, answer)
        for name in self._names:
            self._timeline.after(self._delay(), lambda name=name: self._catch_up(name))  # type: ignore[misc]

    def _catch_up(self, name: str) -> None:
        if self.leader is None or not self._can_talk(name, self.leader):
            return
        replica = self.replicas[name]
        while replica.state.index < len(self.log):
            entry = self.log[replica.state.index]
            answer = replica.state.apply(entry.command)
            if isinstance(entry.command, Acquire | Renew) and isinstance(answer, Done):
                replica.renewed_at[entry.command.node] = self._clock(name)
            if entry.origin == name and (reply := replica.waiting.pop(entry.call, None)) is not None:
                reply(answer)

    def _poll(self) -> None:
        now = self._timeline.now
        if self.leader is not None and self.has_majority(self.leader):
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since, self._election_s = now, self._random.uniform(*ELECTION_S)
        elif now - self._leaderless_since >= self._election_s:
            self._elect()
        for name in self._names:
            self._look_around(name)
            self._catch_up(name)
        self._timeline.after(POLL_S, self._poll)

    def _elect(self) -> None:
        able = [name for name in self._names if self.has_majority(name)]
        if not able:
            return
        self.leader = self._random.choice(able)
        self._leaderless_since = None
        replica = self.replicas[self.leader]
        replica.believes_to_lead, replica.leads_from = True, len(self.log)

    def _look_around(self, name: str) -> None:
        replica = self.replicas[name]
        if self.has_majority(name):
            replica.last_majority = self._timeline.now
        elif not self._can_talk(name, name):
            return
        replica.is_quorate = self._timeline.now - replica.last_majority < QUORATE_S
        if self.leader not in (None, name) and self._can_talk(name, str(self.leader)) and self._random.random() < 0.5:
            replica.believes_to_lead = False
