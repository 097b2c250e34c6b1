"""Members come and go: one at a time, each as one entry of the log, and never so that the rest loses its quorum.

Whoever wants a change asks the leader again and again until the change is applied; the leader remembers a request for a few
seconds only. So nothing has to survive the loss of a leader. A new member is a learner first, and gets its vote by another
change once it has the log. Which learner gets one is not decided here.
"""

import logging
from dataclasses import dataclass

from pysyncobj.node import Node

from . import membership
from .core import MEMBERSHIP, Surroundings
from .exchange import node_named
from .membership import OPERATIONS, Change, Configuration, Members, changed
from .messages import ChangeMember, ChangeProgress
from .replication import Replication
from .values import Address

log = logging.getLogger(__name__)

# A request that is not repeated for this long is forgotten.
PATIENCE_S = 1.0
WITHDRAW = "withdraw"


@dataclass(slots=True)
class Wanted:
    change: Change
    asked_at: float


class MembershipChanges(Replication):
    def __init__(self, around: Surroundings, hints: Members) -> None:
        self._wanted: dict[str, Wanted] = {}
        # By uid: what the leader says a change waits for; "" when it is done.
        self.change_progress: dict[str, str] = {}
        self._handed_over_at = float("-inf")
        super().__init__(around, hints)

    def want_change(self, change: Change) -> None:
        """Ask for a change, by ourselves or at the leader."""
        leader = self._getLeader()
        if self._isLeader():
            self._remember(change)
            self.change_progress[change.uid] = self._obstacle(change)
        elif leader is not None:
            self.exchange.send(leader, ChangeMember(change.op, change.uid, change.host, change.port))

    def withdraw_change(self, change: Change) -> None:
        """Whoever asked has given up: it must not happen later, when nobody expects it any more. Best effort."""
        self._wanted.pop(change.uid, None)
        leader = self._getLeader()
        if leader is not None and not self._isLeader():
            self.exchange.send(leader, ChangeMember(WITHDRAW, change.uid))

    def _on_change_member(self, node: Node, message: ChangeMember) -> None:
        if not self._isLeader():
            return
        if not self._is_member(node):
            # Linked for a while: it was removed, or is about to join. It has no say in who else is a member.
            log.info("%s: %s asks to %s %s and is no member", self.uid, node.id, message.op, message.uid)
            return
        if message.op == WITHDRAW:
            self._wanted.pop(message.uid, None)
            return
        op = next((known for known in OPERATIONS if known == message.op), None)
        if op is None:
            log.warning("%s: %s asks for the unknown change %r", self.uid, node.id, message.op)
            return
        change = Change(op, message.uid, message.host, message.port)
        self._remember(change)
        obstacle = self._obstacle(change)
        self.exchange.send(node, ChangeProgress(change.uid, obstacle, done=not obstacle))

    def _on_change_progress(self, message: ChangeProgress) -> None:
        self.change_progress[message.uid] = message.waiting_for

    def _remember(self, change: Change) -> None:
        self._wanted[change.uid] = Wanted(change, self._now())
        if change.op in ("add", "learn"):
            self.allow(change.uid, Address(change.host, change.port))

    def _advance_changes(self, now: float) -> None:
        for uid, wanted in list(self._wanted.items()):
            if now - wanted.asked_at > PATIENCE_S:
                del self._wanted[uid]
                continue
            obstacle = self._obstacle(wanted.change)
            if obstacle == READY:
                log.info("%s: %s member %s", self.uid, wanted.change.op, uid)
                self._append(MEMBERSHIP + membership.encode(wanted.change), self.raftCurrentTerm)
            elif obstacle == HAND_OVER:
                self._hand_over(now)
            elif not obstacle:
                del self._wanted[uid]

    def hand_over(self) -> None:
        """Best effort: the most caught-up follower becomes the leader."""
        self._hand_over(self._now())

    def _hand_over(self, now: float) -> None:
        if now - self._handed_over_at > self.options.heartbeat_s:
            self._handed_over_at = now
            self.transferLeadership()

    def _obstacle(self, change: Change) -> str:
        """What stands before a change; "" when it is made and applied. For people, except the two constants."""
        now = self.configurations.whole
        after = changed(now, change)
        is_made = after == now
        noop = self._SyncObj__noopIDx
        if noop is None or self.raftLastApplied < noop:
            return "the new leader's first entry"
        if self.configurations.changed_at > self.raftLastApplied:
            return "this change to be committed" if is_made else "another change to be committed"
        if is_made:
            # Whoever lets a newcomer in wants to know that it has come.
            return self._lag(change.uid) if change.op == "learn" and change.uid in now.learners else ""
        if self.uid not in after.voters:
            return HAND_OVER if len(now.voters) > 1 else "another voter: the last one stays"
        if change.uid in after.voters and change.uid not in now.voters and (lag := self._lag(change.uid)):
            return lag
        return READY if self._keeps_quorum(now, after) else "more members to be up"

    def ready_learners(self) -> tuple[str, ...]:
        """Those that could be given a vote, as far as a leader knows. From any thread."""
        learners = self.configurations.whole.learners if self._isLeader() else {}
        return tuple(sorted(uid for uid in learners if not self._lag(uid)))

    def _lag(self, uid: str) -> str:
        node = node_named(uid)
        if node not in self._SyncObj__connectedNodes:
            return f"{uid} to connect"
        match = self._SyncObj__raftMatchIndex.get(node, 0)
        if match < self.configurations.recovered_at:
            return f"{uid} to receive the cluster's recovery"
        missing = self.log.last_index - match
        return f"{uid} to receive {missing} entries" if missing > self.options.promote_lag_entries else ""

    def _keeps_quorum(self, before: Configuration, after: Configuration) -> bool:
        """A majority of the coming voters answers."""
        members = after.voters
        if members.keys() == before.voters.keys():
            return True
        now, answers, limit = self._now(), self._SyncObj__lastResponseTime, self.options.leader_quorum_s
        answering = {uid for uid in self.connected if now - answers.get(node_named(uid), float("-inf")) < limit}
        alive = len((answering | {self.uid}) & set(members))
        return alive * 2 > len(members)


READY = "its turn"
HAND_OVER = "another leader"
