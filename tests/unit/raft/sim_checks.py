"""What may never be, looked at while it happens: each check raises with what was seen.

They see all replicas at once, which no replica can, and what is durable on each disk. That a follower's acknowledgement or
a vote leaves before it is durable is therefore seen when it leaves, not only when a crash makes a loss of it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from clusterfs.raft.journal import Log
from clusterfs.raft.messages import AnyMessage, AppendReply, PreVote, PreVoteReply, RequestVote, VoteReply


class Violation(AssertionError):
    """A rule of Raft, or a promise to a client, is broken."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


@dataclass
class Durable:
    """What one disk would have after a power loss now, as its replica believes."""

    base_index: int = 0
    # From the base on.
    terms: Sequence[int] = (0,)
    term: int = 0
    voted_for: str | None = None

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.terms) - 1

    def holds(self, index: int, term: int) -> bool:
        """The entry, or a snapshot that includes it."""
        position = index - self.base_index
        return position < 0 or (position < len(self.terms) and self.terms[position] == term)


@dataclass
class Checks:
    leaders: dict[int, str] = field(default_factory=dict)
    votes: dict[tuple[str, int], str] = field(default_factory=dict)
    # (index, term): the term before it and the command. Equal here means equal logs up to there, by induction.
    entries: dict[tuple[int, int], tuple[int, bytes]] = field(default_factory=dict)
    committed: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    last_committed: int = 0
    # By the term of who committed.
    last_committed_in: dict[int, int] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)

    def added(self, uid: str, log: Log, command: bytes, index: int, term: int) -> None:
        """Log matching."""
        before = log.term_at(index - 1)
        assert before is not None
        known = self.entries.setdefault((index, term), (before, command))
        require(known == (before, command), f"{uid}'s entry {index} of term {term} is not the others'")

    def leads(self, uid: str, term: int, log: Log) -> None:
        """One leader a term, which has everything that is committed."""
        require(self.leaders.setdefault(term, uid) == uid, f"{self.leaders[term]} and {uid} both lead in term {term}")
        self.require_committed(uid, term, log)

    def require_committed(self, uid: str, term: int, log: Log) -> None:
        """A candidate of the past may win late, and need not have what later terms committed."""
        last = max((index for before, index in self.last_committed_in.items() if before < term), default=0)
        if last > log.base_index:
            require(
                log.term_at(last) == self.committed[last][0],
                f"{uid} leads in term {term} without the committed entry {last}",
            )

    def commits(self, uid: str, in_term: int, before: int, after: int, log: Log) -> bool:
        """The committed part of the log is the same everywhere, for ever. True when it is longer now."""
        for index in range(max(before, log.base_index) + 1, after + 1):
            command, _, term = log[index - log.base_index]
            known = self.committed.setdefault(index, (term, command))
            require(known == (term, command), f"{uid} commits another entry at {index} than others did")
        if after > self.last_committed:
            # A replica that takes over a snapshot says nothing of the entries in it.
            require(after in self.committed, f"{uid} commits {after}, which nobody ever had")
            self.last_committed = self.last_committed_in[in_term] = after
            return True
        return False

    def is_durable(self, index: int, disks: Mapping[str, Durable], configurations: Iterable[Iterable[str]]) -> None:
        """On the disks of a majority, whatever happens next."""
        term = self.committed[index][0]
        for voters in configurations:
            uids = list(voters)
            holders = [uid for uid in uids if disks[uid].holds(index, term)]
            if len(holders) * 2 > len(uids):
                return
        raise Violation(f"entry {index} is committed, and durable on {', '.join(holders) or 'no disk'} only")

    def sends(self, uid: str, target: str, message: AnyMessage, disk: Durable) -> None:
        """Nothing is said that a crash could make untrue."""
        if isinstance(message, PreVote | PreVoteReply):
            return
        term = getattr(message, "term", 0)
        require(term <= disk.term, f"{uid} speaks in term {term}, and only {disk.term} is on its disk")
        candidate = uid if isinstance(message, RequestVote) else None
        if isinstance(message, VoteReply) and message.granted:
            candidate = target
        if candidate is not None:
            known = self.votes.setdefault((uid, term), candidate)
            require(known == candidate, f"{uid} votes for {known} and for {candidate} in term {term}")
            is_stored = disk.term > term or disk.voted_for == candidate
            require(is_stored, f"{uid} votes for {candidate} in term {term} before it is on its disk")
        if isinstance(message, AppendReply) and message.ok:
            require(
                message.match <= disk.last_index,
                f"{uid} confirms entry {message.match}, and its disk ends at {disk.last_index}",
            )

    def boots(self, uid: str, before: Durable, log: Log) -> None:
        """What was durable is there again."""
        term, vote = log.getCurrentTerm(), log.getVotedForNodeId()
        require(term >= before.term, f"{uid} comes back in term {term}, and was in {before.term}")
        is_kept = term > before.term or before.voted_for in (None, vote)
        require(is_kept, f"{uid} voted for {before.voted_for} in term {term} and has forgotten it")
        # Beyond what is committed a cut may have been written that nobody knows to be durable.
        last = min(before.last_index, self.last_committed)
        if last > log.base_index and before.holds(last, self.committed[last][0]):
            require(log.term_at(last) == self.committed[last][0], f"{uid} comes back without its durable entry {last}")

    def applies(self, uid: str, index: int, text: str, before: bytes) -> bytes:
        """Equal digests at equal indices; the new digest."""
        digest = hashlib.blake2b(f"{index} {text}".encode(), key=before, digest_size=16).digest()
        require(self.digests.setdefault(index, digest) == digest, f"{uid} applies another history up to {index}")
        place = self.places.setdefault(text, index)
        require(place == index, f"{text} is applied at {place} and at {index}, and was sent once")
        return digest


@dataclass(frozen=True, slots=True)
class Applied:
    """What a replicated machine answers, and where this copy of the command was applied."""

    index: int
    result: object


class KeptUntil(Protocol):
    def until(self, index: int) -> Self: ...


@dataclass
class Ledger:
    """What one cluster has promised to its clients, and the checks that it goes by."""

    checks: Checks = field(default_factory=Checks)
    # By what the client called it: the index.
    acknowledged: dict[str, int] = field(default_factory=dict)
    newest_acknowledged: int = 0
    # Sent, with so many copies that were not denied. Without one it must never appear.
    open: dict[str, int] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    # Of a machine that has more to it: what it keeps, files that must be there, and its log's end and digest (`sim_store`).
    kept: KeptUntil | None = None
    promised: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    replayed: tuple[int, bytes] = (0, b"")

    def forked(self, kept: Mapping[int, tuple[int, bytes]], *, sure: int, term: int) -> "Ledger":
        """That of the cluster which goes on with one replica's log (`kept`) alone. What it does not hold is lost, and promised no
        more; what nobody knows to be committed (beyond `sure`) is so from now on, and may differ from what the others do."""
        before = self.checks
        committed = {at: entry for at, entry in before.committed.items() if at <= sure} | dict(kept)
        last = max(committed)
        checks = Checks(
            # The others may be in that term as well, and there is nothing between the two.
            entries={place: entry for place, entry in before.entries.items() if place[1] <= term},
            committed=committed,
            last_committed=last,
            last_committed_in={term: last},
            digests={at: digest for at, digest in before.digests.items() if at <= sure},
            places={text: at for text, at in before.places.items() if at <= sure},
        )

        def is_kept(index: int) -> bool:
            return index in committed and committed[index] == before.committed.get(index)

        acknowledged = {key: index for key, index in self.acknowledged.items() if is_kept(index)}
        return Ledger(
            checks,
            acknowledged,
            max(acknowledged.values(), default=0),
            # Of what was under way, or was denied by the others, anything may be in the log that is kept.
            {},
            kept=self.kept.until(sure) if self.kept is not None else None,
            promised={path: promise for path, promise in self.promised.items() if is_kept(promise[0])},
        )

    def sends(self, key: str) -> None:
        self.open[key] = self.open.get(key, 0) + 1

    def acknowledges(self, key: str, index: int) -> None:
        self.acknowledged[key] = index
        self.newest_acknowledged = max(self.newest_acknowledged, index)

    def denies(self, key: str) -> None:
        self.open[key] -= 1

    @property
    def denied(self) -> set[str]:
        return {key for key, copies in self.open.items() if copies == 0}

    def require_none_denied(self, uid: str, keys: Iterable[str]) -> None:
        denied = self.denied.intersection(keys)
        require(not denied, f"{uid} has {', '.join(sorted(denied))}, which was denied")
