"""A command's way into the log: names it, sends it, and sends the same one again while nobody knows what became of it.

The retry is exactly-once because the state remembers a command's (client, seq) and answers a copy from memory. A caller
never waits beyond its deadline, and hears at once when there is no quorum, by the names of the nodes that are missing.
"""

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clusterfs.commands import Envelope, LeaseRenew, Op, RaiseFormat, SessionRenew, encode, version_of
from clusterfs.consensus import Consensus, ReplicaStatus
from clusterfs.machine import StoreMachine
from clusterfs.outcomes import Done, Refusal, Result
from clusterfs.pending import OnResult, Pending
from clusterfs.refusals import to_error
from kvorum.errors import Busy, DiskFull, KvorumError, NoQuorum, OutcomeUnknown, Unsupported

DEADLINE_S = 10.0
# One try; several fit into a deadline, so that a command survives the loss of the leader that had it.
ATTEMPT_S = 3.0


@dataclass(frozen=True, slots=True)
class Author:
    """Who wants a change, from where, and why; kept with it."""

    name: str = ""
    source: str = ""
    reason: str = ""
    # A lock under whose token alone the change counts.
    lock: str = ""
    token: int = 0


ROOT = Author("root@pam")


class Proposer:
    def __init__(
        self,
        *,
        replica: Consensus,
        machine: StoreMachine,
        node_uid: str,
        names: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`names`: of nodes by uid, for as long as the state does not know them."""
        self._replica = replica
        self._machine = machine
        self._node_uid = node_uid
        self._names = dict(names)
        self._clock = clock
        self._client = uuid.uuid4().hex
        self._sequence = itertools.count(1)
        self._mutex = threading.Lock()
        self._pending = Pending(replica, self._settle, self._explained, clock=clock, attempt_s=ATTEMPT_S)

    def envelope(self, op: Op, author: Author = ROOT) -> Envelope:
        """A new command of this process, in the version that all members know. Raises Unsupported when that cannot say it."""
        with self._mutex:
            seq = next(self._sequence)
        # A renewal may be applied twice without harm, and there are many: no memory is spent on it.
        client = "" if isinstance(op, LeaseRenew | SessionRenew) else self._client
        needed, written = version_of(op), self._machine.state.format
        if needed > written and not isinstance(op, RaiseFormat):
            raise Unsupported(
                "not every node of the cluster knows this yet",
                remedy="upgrade the others, or remove those that are gone for good; a moment later it works",
            )
        return Envelope(
            op=op,
            version=max(needed, written),
            client=client,
            seq=seq,
            author=author.name,
            source=author.source,
            reason=author.reason,
            node=self._node_uid,
            lock=author.lock,
            token=author.token,
        )

    def execute(self, op: Op, author: Author = ROOT, *, deadline_s: float = DEADLINE_S) -> Done:
        """Raises what a refusal means, NoQuorum at once, OutcomeUnknown at the deadline."""
        result = self.propose(op, author, deadline_s=deadline_s)
        if isinstance(result, Refusal):
            raise to_error(result)
        return result

    def propose(self, op: Op, author: Author = ROOT, *, deadline_s: float = DEADLINE_S) -> Result:
        """As `execute`, with a refusal as a value."""
        return self._settle(encode(self.envelope(op, author)), self._clock() + deadline_s, is_sent=False)

    def submit(self, op: Op, author: Author = ROOT, *, on_result: OnResult, deadline_s: float = DEADLINE_S) -> None:
        """As `propose`, but nobody waits: `on_result` is called once, with the result or with what `propose` would raise. That
        happens here, in the raft thread or in one for stragglers, so it must be short."""
        self._pending.submit(lambda: encode(self.envelope(op, author)), self._clock() + deadline_s, on_result)

    def _settle(self, entry: bytes, end: float, *, is_sent: bool) -> Result:
        """Sends until there is an answer. `is_sent`: it was sent before, so that it may be in the log already."""
        while True:
            left = end - self._clock()
            if left <= 0:
                raise OutcomeUnknown(
                    "no answer before the deadline: the change may or may not be made",
                    remedy="read it before trying again",
                )
            try:
                answer = self._replica.propose(entry, deadline_s=min(left, ATTEMPT_S))
            except NoQuorum as error:
                if is_sent:
                    raise OutcomeUnknown(
                        "quorum was lost while the change was under way: it may or may not be made",
                        remedy="read it when the cluster has quorum again",
                    ) from error
                raise self._explained(error) from error
            except OutcomeUnknown:
                is_sent = True
                continue
            except Busy:
                # Certainly not this time, but perhaps before.
                if is_sent:
                    continue
                raise
            assert isinstance(answer, Done | Refusal), answer
            return answer

    def barrier(self, *, deadline_s: float) -> int:
        """Returns when everything acknowledged anywhere before this call is applied here. Raises NoQuorum, OutcomeUnknown."""
        try:
            return self._replica.barrier(deadline_s=deadline_s)
        except NoQuorum as error:
            raise self._explained(error) from error

    def pass_barrier(self, passed: Callable[[KvorumError | None], None], *, deadline_s: float) -> None:
        """As `barrier`, but nobody waits: `passed` is called once, with what `barrier` would raise if it did."""
        self._pending.pass_barrier(lambda: self.barrier(deadline_s=deadline_s), passed)

    def _explained(self, error: KvorumError) -> KvorumError:
        """Consensus knows nodes by uid only; that this node's disk is full it can say itself."""
        return self.no_quorum() if isinstance(error, NoQuorum) and not isinstance(error, DiskFull) else error

    def no_quorum(self) -> NoQuorum:
        """The error that names who is missing and what to do about it."""
        status = self._replica.status()
        missing = sorted(self.name_of(uid) for uid in status.missing)
        total = len(status.members)
        who = f": missing {', '.join(missing)}" if missing else ""
        return NoQuorum(
            f"no quorum{who}",
            missing=missing,
            remedy=f"start the missing nodes or restore their network; {total // 2 + 1} of {total} are needed",
        )

    def name_of(self, uid: str) -> str:
        member = self._machine.state.members.get(uid)
        return member.name if member is not None else self._names.get(uid, uid)


class Quorum:
    """Whether there is quorum, asked often: by each look at a file's mode."""

    def __init__(
        self, replica: Consensus, *, max_age_s: float = 0.05, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._replica = replica
        self._max_age_s = max_age_s
        self._clock = clock
        self._seen: tuple[float, ReplicaStatus] | None = None

    def status(self) -> ReplicaStatus:
        """At most `max_age_s` old."""
        now = self._clock()
        seen = self._seen
        if seen is None or now - seen[0] > self._max_age_s:
            seen = (now, self._replica.status())
            self._seen = seen
        return seen[1]

    @property
    def is_quorate(self) -> bool:
        return self.status().is_quorate
