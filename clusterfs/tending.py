"""The leader's chore with the members: takes `voting`'s steps, one at a time, each of which may be repeated by anybody.

Whoever lets a node in or takes one out does it at once and in its own order; what differs only for a moment is left to it. What
still differs after a while was left by somebody who died in the middle, and is finished here.
"""

import logging
import time
from collections.abc import Callable

from clusterfs import voting
from clusterfs.consensus import Replica, ReplicaStatus
from clusterfs.membership import Member
from clusterfs.state import State
from clusterfs.voting import Learn, Move, Promote

log = logging.getLogger(__name__)

# How long a difference is somebody else's business.
PATIENCE_S = 10.0


class Tending:
    def __init__(self, replica: Replica, *, uid: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._replica = replica
        self._uid = uid
        self._now = clock
        self._since: dict[voting.Step, float] = {}
        self._is_handing_over = False

    def round(self, state: State, status: ReplicaStatus) -> None:
        """Does nothing anywhere but on a leader with a quorum."""
        if status.role != "leader" or not status.is_quorate or not status.caught_up:
            self._since.clear()
            self._is_handing_over = False
            return
        self._hand_over(state, status)
        step = voting.next_step(state.members, status.hosts, status.members, status.ready_learners)
        if step is None:
            self._since.clear()
            return
        began = self._since.setdefault(step, self._now())
        self._since = {step: began}
        if isinstance(step, Promote | Move) or self._now() - began > PATIENCE_S:
            self._take(step, state)

    def _hand_over(self, state: State, status: ReplicaStatus) -> None:
        """A witness leads only for as long as it must: the leader's node has HA's manager, and a witness has none. It asks on:
        the one it would hand over to may not be able to lead (its disk is full), and meanwhile has the chores of a leader."""
        me = state.members.get(self._uid)
        others = [
            uid
            for uid, is_up in status.members.items()
            if is_up and uid != self._uid and uid in state.members and not state.members[uid].witness
        ]
        if me is None or not me.witness or not others:
            return
        if not self._is_handing_over:
            log.info("this witness hands leadership over")
        self._is_handing_over = True
        self._replica.hand_over()

    def _take(self, step: voting.Step, state: State) -> None:
        """Asks and does not wait: the next round sees what became of it. Whoever waited for one change could ask on for it after
        it was made and another had taken it back."""
        member: Member | None = state.members.get(step.uid)
        match step:
            case Promote() if member is not None:
                log.info("%s shall vote", member.name)
                self._replica.suggest("add", member.uid, member.address)
            case Learn() if member is not None:
                self._replica.suggest("learn", member.uid, member.address)
            case Move() if member is not None:
                self._replica.suggest("move", member.uid, member.address)
            case _:
                self._replica.suggest("remove", step.uid, "")
