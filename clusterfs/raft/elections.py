"""Elections: pysyncobj's, with what keeps one node from disturbing the others.

A node asks before it stands (pre-vote, Ongaro's thesis 9.6), so that one which was away cannot depose a healthy leader with
a term it counted up alone. Who hears a leader votes for nobody else (4.2.3), unless that leader handed over itself. Votes are a
set of voters, the vote is on disk before it is given, and a refusal carries the term.

Silence waits for the whole timeout, for the leader may only be slow. But when the leader's side *closes* its link, its process
is gone in all likelihood: then the others need not wait, and take turns by their uids. Where that was an error, the leader
still has its majority, which refuses.
"""

import logging

from pysyncobj.node import Node

from .core import CANDIDATE, FOLLOWER, LEADER, Core, Surroundings
from .exchange import Outgoing
from .membership import Members
from .messages import PreVote, PreVoteReply, RequestVote, TimeoutNow, VoteReply

log = logging.getLogger(__name__)

# After the leader's link was closed: the first asks after about this long, each other a turn later, in seconds.
FORSAKEN_S = 0.04
TURN_S = 0.15
# Who was promised a vote, or asks with a better right, is given so much time before we ask ourselves.
YIELD_S = 0.3


class Elections(Core):
    def __init__(self, around: Surroundings, hints: Members) -> None:
        self._round = 0
        self._pre_votes: set[str] = set()
        self._votes: set[str] = set()
        # A majority is willing, since when; and may pysyncobj begin the election that is due, in this tick?
        self._may_stand = False
        self._willing_at = float("-inf")
        self._is_standing = False
        # The term of an election that the leader asked for.
        self._transfer_term: int | None = None
        # The leader that has closed its link to us, and has not been heard of since.
        self._forsaken_by: Node | None = None
        self._asked_at = float("-inf")
        super().__init__(around, hints)
        self.exchange.on_closed = self._link_closed

    def _prepare_election(self, now: float) -> None:
        """Called before each tick of pysyncobj, which stands as soon as the deadline has passed: put that off until a
        majority is willing."""
        self._is_standing = False
        if self._isLeader():
            return
        if self.is_learner:
            self._SyncObj__raftElectionDeadline = now + self.options.election_timeout_max_s
            return
        if self._SyncObj__raftElectionDeadline >= now:
            return
        if not self._SyncObj__otherNodes:
            self._is_standing = True
            return
        self._votes = set()
        if self._may_stand:
            self._may_stand = False
            # Who was frozen since then asks again: there may be a leader by now.
            if now - self._willing_at < YIELD_S:
                self._is_standing = True
                return
        self._round += 1
        self._pre_votes = set()
        question = PreVote(self.raftCurrentTerm + 1, self._round, self.log.last_index, self.log[-1][2])
        for node in self._SyncObj__otherNodes:
            self.exchange.send(node, question)
        self._asked_at = now
        self._restart_election_timer()
        if self._is_forsaken:
            # The others may not have noticed yet.
            self._SyncObj__raftElectionDeadline = now + TURN_S * (1.0 + self._chance())

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802
        """pysyncobj's last condition for standing. It looks at the clock itself, later than `_prepare_election`: a process that
        was frozen in between would stand without having asked anybody, and depose a healthy leader by its term."""
        return self._is_standing and (bool(self._SyncObj__connectedNodes) or not self._SyncObj__otherNodes)

    def _link_closed(self, node: Node) -> None:
        if node != self._getLeader() or self.is_learner:
            return
        self._forsaken_by = node
        heirs = sorted(set(self.configurations.current) - {node.id})
        wait = FORSAKEN_S * (1.0 + self._chance()) + TURN_S * heirs.index(self.uid)
        self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, self._now() + wait)
        log.info("%s: the leader %s has closed its link", self.uid, node.id)

    @property
    def _is_forsaken(self) -> bool:
        return self._forsaken_by is not None and self._forsaken_by == self._getLeader()

    def _chance(self) -> float:
        """From 0 to 1, by pysyncobj's dice."""
        shortest, longest = self.options.election_timeout_min_s, self.options.election_timeout_max_s
        return float((self._SyncObj__generateRaftTimeout() - shortest) / (longest - shortest))

    def _is_majority(self, voters: set[str]) -> bool:
        """Do these and this node make one?"""
        others = {node.id for node in self._SyncObj__otherNodes}
        return (len(voters & others) + 1) * 2 > len(others) + 1

    def _hears_leader(self) -> bool:
        now = self._now()
        if self._isLeader():
            return now - self._proof_at() < self.options.election_timeout_min_s
        if self._is_forsaken:
            return False
        return self._getLeader() is not None and now - self._beat_at < self.options.election_timeout_min_s

    def _is_up_to_date(self, last_index: int, last_term: int) -> bool:
        return (last_term, last_index) >= (self.log[-1][2], self.log.last_index)

    def _on_pre_vote(self, node: Node, message: PreVote) -> None:
        is_willing = (
            message.term > self.raftCurrentTerm
            and not self._is_of_the_past
            and not self._hears_leader()
            and self._is_up_to_date(message.last_log_index, message.last_log_term)
            and not self._has_better_right(node, message)
        )
        if is_willing and not self._may_stand:
            deadline = self._SyncObj__raftElectionDeadline
            self._SyncObj__raftElectionDeadline = max(deadline, self._now() + YIELD_S)
        self.exchange.send(node, PreVoteReply(self.raftCurrentTerm, message.round, is_willing))

    def _has_better_right(self, node: Node, message: PreVote) -> bool:
        """Of two who ask at the same time one must yield, or they would stand in the same term and split the votes."""
        if self._now() - self._asked_at > YIELD_S or message.term != self.raftCurrentTerm + 1:
            return False
        mine, others = (self.log[-1][2], self.log.last_index), (message.last_log_term, message.last_log_index)
        return mine == others and self.uid < node.id

    def _on_pre_vote_reply(self, node: Node, message: PreVoteReply) -> None:
        if self._observe(message.term) or self._isLeader():
            return
        if message.granted and message.round == self._round and not self._hears_leader():
            self._pre_votes.add(node.id)
            if self._is_majority(self._pre_votes):
                # Answers that are still on their way belong to a round that is over, and those that came do not count again.
                self._round += 1
                self._pre_votes = set()
                self._stand()

    def _stand(self) -> None:
        self._may_stand = True
        self._willing_at = self._now()
        self._SyncObj__raftElectionDeadline = 0.0

    def _on_request_vote(self, node: Node, message: RequestVote) -> None:
        is_granted = False
        is_fit = self._is_up_to_date(message.last_log_index, message.last_log_term) and not self._is_of_the_past
        if message.term > self.raftCurrentTerm:
            if message.transfer or not self._hears_leader():
                is_granted = is_fit
                # In this order: see `_observe`.
                self._SyncObj__setState(FOLLOWER)
                self._SyncObj__raftLeader = None
                self._SyncObj__setCurrentTerm(message.term, node.id if is_granted else None)
        elif message.term == self.raftCurrentTerm and self._SyncObj__raftState != LEADER and is_fit:
            is_granted = self._SyncObj__votedForNodeId in (None, node.id)
            if is_granted:
                self._SyncObj__setCurrentTerm(message.term, node.id)
        if is_granted:
            self._restart_election_timer()
        self.exchange.send(node, VoteReply(self.raftCurrentTerm, is_granted))

    def _on_vote_reply(self, node: Node, message: VoteReply) -> None:
        if self._observe(message.term):
            return
        if self._SyncObj__raftState != CANDIDATE or message.term != self.raftCurrentTerm or not message.granted:
            return
        self._votes.add(node.id)
        if self._is_majority(self._votes):
            self._SyncObj__onBecomeLeader()

    def _on_timeout_now(self, node: Node, message: TimeoutNow) -> None:
        """The leader hands over to us."""
        if message.term == self.raftCurrentTerm and node == self._getLeader() and not self.is_learner:
            log.info("%s: %s hands over leadership", self.uid, node.id)
            self._transfer_term = message.term + 1
            self._stand()

    def _amend(self, message: Outgoing) -> Outgoing:
        """pysyncobj composes request_vote itself and does not know of hand-overs."""
        if isinstance(message, dict) and message["type"] == "request_vote" and message["term"] == self._transfer_term:
            return {**message, "transfer": True}
        return message
