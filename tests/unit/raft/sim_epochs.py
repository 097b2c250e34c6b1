"""A majority lost for good, in the simulation: one replica goes on alone under a new epoch, and others come back or join it anew.

Whoever is recovered begins another ledger with what it holds. The old majority keeps its own, may live on and commit; that the
two never meet in one log is looked at whenever a link comes up.
"""

from raft_sim import Crash, Sim, SimLog
from sim_checks import Durable
from sim_disk import SimDisk, SimFiles

from clusterfs.raft.core import configurations_of, reconcile
from clusterfs.raft.recovery import recover_log
from clusterfs.raft.snapshot import SnapshotStore
from clusterfs.raft.values import Address
from kvorum.errors import DiskFull

ATTEMPTS = 5


def recover(sim: Sim, uid: str, *, mark: int) -> bool:
    """`cluster recover --from-this-node`, as often as it takes. False when the node has nothing to go on with."""
    node = sim.nodes[uid]
    if node.consensus is not None:
        sim.crash(uid)
    node.disk.is_full = False
    for _ in range(ATTEMPTS):
        try:
            return _recover(sim, uid, mark)
        except (Crash, DiskFull, OSError):
            sim.say(f"{uid} crashes while it recovers")
            sim.crash(uid)
    return False


def _recover(sim: Sim, uid: str, mark: int) -> bool:
    node = sim.nodes[uid]
    files = SimFiles(node.disk, lambda operation, _name, is_done: sim._on_disk(uid, operation, is_done))
    held = SimLog(files, sim, node)
    point = reconcile(held, SnapshotStore(files).current())
    configurations = configurations_of(held, point)
    if uid not in configurations.whole.everybody or held.last_index == 0:
        return False
    sure = max(held.getRaftCommitIndex(), point.index)
    kept = {index: (term, command) for command, index, term in held[1:]}
    before = node.ledger
    # An attempt before this one may have crashed with its entry in the log, committed: the others have another one there.
    sure = min([sure, *(at - 1 for at, entry in kept.items() if before.checks.committed.get(at, entry) != entry)])
    ledger = before.forked(kept, sure=sure, term=held.getCurrentTerm())
    held.take(ledger)
    last = held.last_index
    found = recover_log(held, configurations, uid=uid, address=Address(uid, 1), mark=mark, above=node.epoch)
    ledger.checks.committed[found.last_index] = (found.term, held[found.last_index - held.base_index][0])
    ledger.checks.last_committed = found.last_index
    ledger.checks.last_committed_in = {found.term: found.last_index}
    node.ledger, node.epoch = ledger, found.configuration.epoch
    sim.say(f"{uid} is recovered with what it has up to {last}, in epoch {found.configuration.epoch:x}")
    if found.configuration.epoch > sim.epoch:
        sim.epoch, sim.ledger = found.configuration.epoch, ledger
    return True


def rejoin(sim: Sim, uid: str) -> None:
    """`cluster rejoin`: what the node holds is put aside."""
    node = sim.nodes[uid]
    if node.consensus is not None:
        sim.crash(uid, power=False)
    node.disk, node.durable = SimDisk(), Durable()
    node.ledger, node.epoch = sim.ledger, sim.epoch
    node.hints = {other: Address(other, 1) for other in sim.nodes}
    sim.say(f"{uid} joins the recovered cluster anew")
    sim.try_boot(uid)
