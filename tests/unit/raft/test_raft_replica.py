"""Replicas with real sockets, TLS and disks: what a user of consensus relies on."""

import queue
import threading
import time
import uuid

import pytest
from pysyncobj import FAIL_REASON
from raft_cluster import Cluster, until

from clusterfs.raft import ApplyFailed, Role, StorageDamaged
from clusterfs.raft.consensus import Command
from kvorum.errors import AlreadyExists, Busy, InvalidInput, NoQuorum, OutcomeUnknown, Refused, Timeout


def test_three_replicas_elect_a_leader_and_commit_entries_from_any_of_them(cluster: Cluster) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    for number, uid in enumerate(uids):
        assert cluster.replicas[uid].propose(f"from {number}".encode(), deadline_s=5) == number + 1
    cluster.settled(["from 0", "from 1", "from 2"])
    until(lambda: cluster.replicas[leader].status().missing == ())
    status = cluster.replicas[leader].status()
    assert status.role is Role.leader and status.is_quorate and status.caught_up
    assert status.members == dict.fromkeys(uids, True)
    until(lambda: cluster.changes[leader][-1].role is Role.leader)


def test_a_single_replica_writes_soon_after_its_start(cluster: Cluster) -> None:
    (uid,) = cluster.found(1)
    begin = time.monotonic()
    assert cluster.replicas[uid].propose(b"alone", deadline_s=5) == 1
    assert time.monotonic() - begin < 1.0
    assert cluster.replicas[uid].status().missing == ()


def test_losing_the_leader_loses_nothing_and_writes_go_on(cluster: Cluster) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    acknowledged: list[str] = []
    stop = threading.Event()

    def write(uid: str) -> None:
        number = 0
        while not stop.is_set():
            text = f"{uid[:4]}-{number}"
            number += 1
            try:
                cluster.replicas[uid].propose(text.encode(), deadline_s=10)
            except (OutcomeUnknown, NoQuorum):
                continue
            acknowledged.append(text)

    survivors = [uid for uid in uids if uid != leader]
    writers = [threading.Thread(target=write, args=(uid,)) for uid in survivors]
    for writer in writers:
        writer.start()
    until(lambda: len(acknowledged) > 20)
    cluster.crash(leader)
    before = len(acknowledged)
    took = until(lambda: len(acknowledged) > before + 20)
    stop.set()
    for writer in writers:
        writer.join()
    assert took < 8
    cluster.start(leader)
    assert set(acknowledged) <= set(cluster.machines[survivors[0]].entries)
    cluster.settled(cluster.machines[survivors[0]].entries)


def test_everything_acknowledged_is_there_after_all_were_killed_and_restarted(cluster: Cluster) -> None:
    uids = cluster.found(3)
    cluster.leader()
    entries = [f"e{number}" for number in range(50)]
    for number, text in enumerate(entries):
        cluster.replicas[uids[number % 3]].propose(text.encode(), deadline_s=5)
    term = cluster.replicas[uids[0]].status().term
    for uid in uids:
        cluster.crash(uid)
    for uid in uids:
        cluster.start(uid)
    cluster.settled(entries)
    assert cluster.replicas[cluster.leader()].status().term > term


def test_without_a_majority_writes_are_refused_at_once_and_name_who_is_missing(cluster: Cluster) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    cluster.replicas[leader].propose(b"x", deadline_s=5)
    gone = [uid for uid in uids if uid != leader]
    for uid in gone:
        cluster.crash(uid)
    took = until(lambda: not cluster.replicas[leader].status().is_quorate, timeout_s=5)
    assert took < 2.0
    until(lambda: len(cluster.replicas[leader].status().missing) == 2, timeout_s=2)
    begin = time.monotonic()
    with pytest.raises(NoQuorum) as caught:
        cluster.replicas[leader].propose(b"y", deadline_s=10)
    assert time.monotonic() - begin < 0.2
    assert sorted(caught.value.missing) == sorted(gone)
    with pytest.raises(NoQuorum):
        cluster.replicas[leader].barrier(deadline_s=10)
    assert cluster.machines[leader].entries == ["x"]


def test_a_write_under_way_when_quorum_is_lost_ends_with_outcome_unknown(cluster: Cluster) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    for uid in uids:
        if uid != leader:
            cluster.crash(uid)
    begin = time.monotonic()
    with pytest.raises((OutcomeUnknown, NoQuorum)):
        cluster.replicas[leader].propose(b"late", deadline_s=30)
    assert time.monotonic() - begin < 5


def test_what_is_submitted_is_answered_in_the_raft_thread_and_nobody_waits(cluster: Cluster) -> None:
    uids = cluster.found(3)
    cluster.leader()
    answers: queue.SimpleQueue[tuple[object, str]] = queue.SimpleQueue()
    texts = [f"s{number}" for number in range(60)]

    def answered(answer: object) -> None:
        answers.put((answer, threading.current_thread().name))

    for number, text in enumerate(texts):
        cluster.replicas[uids[number % 3]].submit(text.encode(), answered, lambda _sent: answers.put(("open", "")))
    found = [answers.get(timeout=10) for _ in texts]
    assert {name for _, name in found} == {"raft"}
    assert sorted(answer for answer, _ in found if isinstance(answer, int)) == list(range(1, 61))
    assert answers.empty()
    until(lambda: all(sorted(cluster.machines[uid].entries) == sorted(texts) for uid in uids))


def test_what_was_submitted_and_is_lost_with_its_quorum_is_told_as_open(cluster: Cluster) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    for uid in uids:
        if uid != leader:
            cluster.crash(uid)
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    try:
        cluster.replicas[leader].submit(b"late", answers.put, lambda _sent: answers.put("open"))
    except NoQuorum:
        pass
    else:
        assert answers.get(timeout=10) == "open"
    until(lambda: not cluster.replicas[leader].status().is_quorate)
    with pytest.raises((NoQuorum, OutcomeUnknown)):
        cluster.replicas[leader].propose(b"later", deadline_s=2)
    with pytest.raises(InvalidInput):
        cluster.replicas[leader].submit(b"x" * 2**26, answers.put, lambda _sent: answers.put("open"))


def test_a_barrier_sees_what_was_acknowledged_anywhere(cluster: Cluster) -> None:
    uids = cluster.found(3)
    cluster.leader()
    for number in range(10):
        writer, reader = uids[number % 3], uids[(number + 1) % 3]
        cluster.replicas[writer].propose(f"b{number}".encode(), deadline_s=5)
        index = cluster.replicas[reader].barrier(deadline_s=5)
        assert cluster.machines[reader].entries[-1] == f"b{number}"
        assert cluster.replicas[reader].status().applied_index >= index >= cluster.machines[reader].indices[-1]


def test_the_leader_stamps_each_entry_once(cluster: Cluster) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    for uid, replica in cluster.replicas.items():
        consensus = replica._consensus
        assert consensus is not None
        consensus._stamp = lambda entry, who=uid: entry + b" by " + who.encode()
    for uid in uids:
        cluster.replicas[uid].propose(b"written", deadline_s=5)
    cluster.settled([f"written by {leader}"] * 3)


def test_an_entry_that_cannot_be_applied_is_an_error_for_its_caller_only(cluster: Cluster) -> None:
    uids = cluster.found(3)
    with pytest.raises(ApplyFailed):
        cluster.replicas[cluster.follower()].propose(b"bad", deadline_s=5)
    assert cluster.replicas[uids[0]].propose(b"good", deadline_s=5) == 1
    cluster.settled(["good"])


def test_an_entry_that_is_too_long_is_refused_and_a_long_one_is_not(cluster: Cluster) -> None:
    cluster.found(3)
    replica = cluster.replicas[cluster.follower()]
    with pytest.raises(InvalidInput):
        replica.propose(b"x" * (cluster.options.max_entry_bytes + 1), deadline_s=5)
    assert replica.propose(b"x" * cluster.options.max_entry_bytes, deadline_s=10) == 1


def test_a_node_joins_votes_and_leaves(cluster: Cluster) -> None:
    founders = cluster.found(1)
    first = cluster.replicas[founders[0]]
    first.propose(b"before", deadline_s=5)
    newcomers = sorted(str(uuid.uuid4()) for _ in range(2))
    for uid in newcomers:
        cluster.start(uid, joining=True)
        cluster.replicas[founders[0]].add_member(uid, cluster.address(uid), deadline_s=15)
    cluster.settled(["before"])
    cluster.crash(founders[0])
    survivor = cluster.replicas[newcomers[0]]
    survivor.propose(b"after", deadline_s=10)
    cluster.start(founders[0])
    cluster.settled(["before", "after"])
    leader = cluster.leader()
    cluster.replicas[leader].remove_member(leader, deadline_s=15)
    assert cluster.replicas[leader].status().role is Role.learner
    remaining = [uid for uid in cluster.replicas if uid != leader]
    until(lambda: set(cluster.replicas[remaining[0]].status().members) == set(remaining))
    cluster.crash(leader)
    cluster.replicas[remaining[0]].propose(b"without", deadline_s=10)
    for uid in remaining:
        cluster.crash(uid)
    for uid in remaining:
        cluster.start(uid)
    cluster.settled(["before", "after", "without"])
    assert set(cluster.replicas[remaining[0]].status().members) == set(remaining)


def test_a_node_that_never_connects_is_not_made_a_member(cluster: Cluster) -> None:
    (uid,) = cluster.found(1)
    ghost = str(uuid.uuid4())
    with pytest.raises(Timeout, match="to connect"):
        cluster.replicas[uid].add_member(ghost, cluster.address(ghost), deadline_s=1)
    assert set(cluster.replicas[uid].status().members) == {uid}
    assert cluster.replicas[uid].propose(b"still quorate", deadline_s=5) == 1


def test_a_joining_node_stays_quiet_until_a_leader_speaks_to_it(cluster: Cluster) -> None:
    cluster.founders = {uid: cluster.address(uid) for uid in (str(uuid.uuid4()),)}
    uid = str(uuid.uuid4())
    replica = cluster.start(uid, joining=True)
    with pytest.raises(NoQuorum):
        replica.propose(b"x", deadline_s=5)
    time.sleep(cluster.options.election_timeout_max_s * 2)
    status = replica.status()
    assert (status.role, status.term, dict(status.members)) == (Role.learner, 0, {})


def test_the_last_member_is_not_removed(cluster: Cluster) -> None:
    (uid,) = cluster.found(1)
    cluster.leader()
    with pytest.raises(Refused):
        cluster.replicas[uid].remove_member(uid, deadline_s=2)


def test_a_member_that_would_take_the_quorum_with_it_is_not_removed(cluster: Cluster) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    alive, dead = [uid for uid in uids if uid != leader]
    cluster.crash(dead)
    until(lambda: dead in cluster.replicas[leader].status().missing)
    with pytest.raises(Timeout, match="more members to be up"):
        cluster.replicas[leader].remove_member(alive, deadline_s=1)
    cluster.replicas[leader].remove_member(dead, deadline_s=5)
    assert cluster.replicas[leader].propose(b"x", deadline_s=5) == 1
    assert set(cluster.replicas[leader].status().members) == {leader, alive}


def test_a_node_far_behind_gets_a_snapshot_and_all_restart_from_theirs(cluster: Cluster) -> None:
    cluster.with_options(compact_entries=100, keep_entries=10, snapshot_chunk_bytes=500)
    uids = cluster.found(3)
    away = cluster.follower()
    cluster.crash(away)
    entries = [f"entry {number}" for number in range(350)]
    replica = cluster.replicas[cluster.leader()]
    for text in entries:
        replica.propose(text.encode(), deadline_s=5)
    until(
        lambda: (
            (cluster.directory / uids[0] / "snapshot").exists() or (cluster.directory / uids[1] / "snapshot").exists()
        )
    )
    cluster.start(away)
    cluster.settled(entries)
    assert (cluster.directory / away / "snapshot").exists()
    for uid in uids:
        cluster.crash(uid)
    for uid in uids:
        cluster.start(uid)
    cluster.settled(entries)
    assert replica.status().role is Role.stopped


def test_a_crash_between_the_snapshot_and_the_logs_compaction_loses_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1: pysyncobj then clears the whole log, with what was acknowledged after the snapshot."""
    cluster.with_options(compact_entries=50, keep_entries=10)
    (uid,) = cluster.found(1)
    with monkeypatch.context() as patch:
        patch.setattr("clusterfs.raft.journal.FileLog.compact", lambda _log, _index: None)
        for number in range(120):
            cluster.replicas[uid].propose(f"e{number}".encode(), deadline_s=5)
        until((cluster.directory / uid / "snapshot").exists)
        cluster.crash(uid)
    cluster.start(uid)
    cluster.settled([f"e{number}" for number in range(120)])


def test_a_log_that_lost_its_beginning_or_is_gone_is_refused(cluster: Cluster) -> None:
    cluster.with_options(compact_entries=50, keep_entries=0)
    (uid,) = cluster.found(1)
    for number in range(80):
        cluster.replicas[uid].propose(f"e{number}".encode(), deadline_s=5)
    until((cluster.directory / uid / "snapshot").exists)
    cluster.crash(uid)
    directory = cluster.directory / uid
    (log,) = directory.glob("log-*")
    snapshot, aside = directory / "snapshot", directory / "aside"
    log.rename(aside)
    with pytest.raises(StorageDamaged, match="no log"):
        cluster.start(uid)
    aside.rename(log)
    data = bytearray(snapshot.read_bytes())
    data[len(data) // 2] ^= 1
    snapshot.write_bytes(data)
    with pytest.raises(StorageDamaged, match="checksum"):
        cluster.start(uid)
    snapshot.unlink()
    with pytest.raises(StorageDamaged):
        cluster.start(uid)


def test_a_directory_is_used_by_one_replica_at_a_time(cluster: Cluster) -> None:
    (uid,) = cluster.found(1)
    running = cluster.replicas[uid]
    with pytest.raises(AlreadyExists):
        cluster.start(uid)
    cluster.replicas[uid] = running


def test_a_replica_whose_disk_fails_stops_and_says_so(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    uids = cluster.found(3)
    leader = cluster.leader()
    log = cluster.replicas[leader]._log
    assert log is not None

    def fail() -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(log._segments[-1].file, "datasync", fail)
    with pytest.raises((OutcomeUnknown, NoQuorum)):
        cluster.replicas[leader].propose(b"x", deadline_s=10)
    status = cluster.replicas[leader].status()
    assert status.role is Role.failed and "input/output" in (status.failure or "")
    until(lambda: cluster.changes[leader][-1].role is Role.failed)
    cluster.replicas.pop(leader).abandon()
    other = next(uid for uid in uids if uid != leader)
    cluster.replicas[other].propose(b"y", deadline_s=10)


def test_a_leader_that_stops_hands_over(cluster: Cluster) -> None:
    cluster.found(3)
    leader = cluster.leader()
    cluster.replicas[leader].propose(b"x", deadline_s=5)
    cluster.settled(["x"])
    cluster.replicas.pop(leader).stop()
    took = until(lambda: any(r.status().role is Role.leader for r in cluster.replicas.values()))
    assert took < cluster.options.election_timeout_min_s


def test_a_node_that_moves_to_another_address_is_found_again(cluster: Cluster) -> None:
    uids = cluster.found(3)
    moving = cluster.follower()
    cluster.crash(moving)
    del cluster.addresses[moving]
    cluster.start(moving)
    cluster.replicas[moving].propose(b"from a new place", deadline_s=10)
    leader = cluster.leader()
    cluster.replicas[leader].add_member(moving, cluster.addresses[moving], deadline_s=10)
    assert cluster.replicas[leader].status().addresses[moving] == cluster.addresses[moving]
    assert set(cluster.replicas[leader].status().members) == set(uids)


def test_whoever_is_refused_until_the_deadline_hears_that_the_leader_is_busy(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uid,) = cluster.found(1)
    cluster.leader()
    replica = cluster.replicas[uid]
    tries: list[Command] = []

    def refuse(command: Command) -> None:
        tries.append(command)
        assert command.callback is not None
        command.callback(None, FAIL_REASON.QUEUE_FULL)

    monkeypatch.setattr(replica._consensus, "submit", refuse)
    with pytest.raises(Busy, match="too many"):
        replica.propose(b"x", deadline_s=0.3)
    assert len(tries) > 1
