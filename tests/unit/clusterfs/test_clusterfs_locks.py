"""Locks: over a real socket, between threads, and growing old on a clock that the test turns."""

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from clusterfs import tree
from clusterfs.commands import (
    Configure,
    Delete,
    LockAcquire,
    LockRelease,
    Mkdir,
    SessionEnd,
    SessionExpire,
    SessionRenew,
    Write,
)
from clusterfs.lock_keeping import round_of_locks
from clusterfs.machine import StoreMachine
from clusterfs.outcomes import Code, Done, Refusal
from clusterfs.proposer import Author, Proposer
from clusterfs.services.lock import LockService
from clusterfs.services.store import StoreService
from clusterfs.tree import Directory, lookup
from kvorum.cli.store import store
from kvorum.client import Client, connect
from kvorum.errors import Fenced, InvalidInput, Locked, NotFound, Refused
from kvorum.v1 import lock_pb2_grpc, store_pb2_grpc

N1 = "11111111-1111-4111-8111-111111111111"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def machine(clock: Clock) -> StoreMachine:
    return StoreMachine(clock=clock)


@pytest.fixture
def client(machine: StoreMachine, proposer: Proposer, tmp_path: Path) -> Iterator[Client]:
    daemon: Any = SimpleNamespace(running=SimpleNamespace(machine=machine, proposer=proposer))
    server = grpc.server(ThreadPoolExecutor(8))
    lock_pb2_grpc.add_LockServiceServicer_to_server(LockService(daemon), server)
    store_pb2_grpc.add_StoreServiceServicer_to_server(StoreService(daemon), server)
    server.add_insecure_port(f"unix:{tmp_path}/sock")
    server.start()
    with connect(f"unix:{tmp_path}/sock") as connected:
        connected.cluster = SimpleNamespace(nodes=lambda: [SimpleNamespace(uid=N1, name="nodes/n1")])  # type: ignore[assignment]
        yield connected
    server.stop(0).wait(5)


def holder(machine: StoreMachine, name: str) -> str:
    lock = machine.state.locks.held.get(name)
    return lock.holder.session if lock is not None and lock.holder is not None else ""


def test_one_holds_the_others_wait_and_get_it_in_their_order(client: Client, machine: StoreMachine) -> None:
    got: list[int] = []
    started = [threading.Event() for _waiter in range(3)]

    def wait(number: int) -> None:
        started[number].set()
        with client.locks.hold("x", reason=f"r{number}", timeout_s=60) as lock:
            got.append(number)
            client.store.write(f"f{number}", b"", fencing=lock)

    with client.locks.hold("x", reason="first") as lock:
        assert (lookup(machine.state.root, ("priv", "lock", "x")) is not None, lock.token > 0) == (True, True)
        threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
        for number, thread in enumerate(threads):
            thread.start()
            while len(client.locks.list()[0].waiters) <= number:
                machine.events_after(machine.view.index, timeout_s=0.5)
        (listed,) = client.locks.list()
        assert listed.holder.reason == "first"
        assert [waiter.reason for waiter in listed.waiters] == ["r0", "r1", "r2"]
        with pytest.raises(Locked), client.locks.hold("x", timeout_s=0):
            pass
    for thread in threads:
        thread.join(30)
    assert got == [0, 1, 2]
    assert client.locks.list() == []
    assert machine.state.locks.sessions == {}


def test_a_broken_lock_is_lost_and_its_token_worth_nothing(client: Client) -> None:
    with client.locks.hold("x") as lock:
        client.store.write("f", b"1", fencing=lock)
        client.locks.break_("x", reason="stuck")
        with pytest.raises(Fenced, match="not held under token"):
            client.store.write("f", b"2", fencing=lock)
        with pytest.raises(Fenced):
            client.store.delete("f", fencing=lock)
        with pytest.raises(Fenced):
            client.store.move("f", "g", fencing=lock)
        with client.locks.hold("x", timeout_s=0) as next_one:
            assert next_one.token > lock.token
            client.store.write("f", b"3", fencing=next_one)
    with pytest.raises(NotFound):
        client.locks.break_("x")


def test_both_fronts_exclude_each_other(client: Client, proposer: Proposer, machine: StoreMachine) -> None:
    proposer.execute(Mkdir("priv/lock/x", parents=True))
    with pytest.raises(Locked), client.locks.hold("x", timeout_s=0):
        pass
    waiting = LockAcquire("x", "s1")
    assert proposer.execute(waiting).number == 0
    proposer.execute(Delete("priv/lock/x", only="directory"))
    assert holder(machine, "x") == "s1"
    refused = proposer.propose(Mkdir("priv/lock/x"))
    assert not isinstance(refused, Done)
    assert proposer.execute(waiting).number == machine.state.locks.held["x"].holder.token  # type: ignore[union-attr]
    proposer.execute(Delete("priv/lock/x", only="directory"))
    assert machine.state.locks.held == {}


@pytest.mark.parametrize(
    ("name", "session", "ttl_s"),
    [("", "s", 30), ("a/b", "s", 30), ("..", "s", 30), ("x", "", 30), ("x", "s", 4), ("x", "s", 4000)],
)
def test_what_is_no_lock_is_refused(proposer: Proposer, name: str, session: str, ttl_s: int) -> None:
    with pytest.raises(InvalidInput):
        proposer.execute(LockAcquire(name, session, ttl_s))


def test_a_session_that_is_not_renewed_ends_and_the_next_has_the_lock(
    machine: StoreMachine, proposer: Proposer, replica: Any, clock: Clock
) -> None:
    proposer.execute(LockAcquire("x", "s1", 30))
    proposer.execute(LockAcquire("x", "s2", 60))
    clock.now += 29
    proposer.execute(SessionRenew("s1"))
    clock.now += 29
    round_of_locks(machine, proposer, replica.status(), uid=replica.uid)
    assert holder(machine, "x") == "s1"
    clock.now += 2
    assert [name for name, _session in machine.old_sessions()] == ["s1"]
    round_of_locks(machine, proposer, replica.status(), uid="another leads")
    assert holder(machine, "x") == "s1"
    round_of_locks(machine, proposer, replica.status(), uid=replica.uid)
    assert holder(machine, "x") == "s2"
    assert list(machine.state.locks.sessions) == ["s2"]


def test_a_renewal_that_came_first_saves_the_session(machine: StoreMachine, proposer: Proposer, clock: Clock) -> None:
    proposer.execute(LockAcquire("x", "s1", 30))
    clock.now += 31
    ((name, seen),) = machine.old_sessions()
    proposer.execute(SessionRenew("s1"))
    assert not isinstance(proposer.propose(SessionExpire(name, seen.renewed)), Done)
    assert holder(machine, "x") == "s1"
    assert machine.old_sessions() == []


def test_a_restart_counts_ages_anew(machine: StoreMachine, proposer: Proposer, clock: Clock) -> None:
    proposer.execute(LockAcquire("x", "s1", 30))
    clock.now += 31
    machine.restore(machine.view.index, machine.snapshot()())
    assert machine.old_sessions() == []
    clock.now += 31
    assert len(machine.old_sessions()) == 1


def test_an_old_lock_by_mkdir_is_broken_when_somebody_waits_for_it(
    machine: StoreMachine, proposer: Proposer, replica: Any, clock: Clock
) -> None:
    proposer.execute(Mkdir("priv/lock/x", parents=True))
    proposer.execute(Mkdir("priv/lock/y"))
    proposer.execute(LockAcquire("x", "s1", 3600))
    clock.now += 119
    round_of_locks(machine, proposer, replica.status(), uid=replica.uid)
    assert holder(machine, "x") == ""
    clock.now += 2
    round_of_locks(machine, proposer, replica.status(), uid=replica.uid)
    assert holder(machine, "x") == "s1"
    assert lookup(machine.state.root, ("priv", "lock", "y")) is not None


def run(client: Client, *arguments: str) -> Any:
    return CliRunner().invoke(store, list(arguments), obj=SimpleNamespace(client=client))


def test_a_command_runs_under_a_lock_and_its_code_is_the_answer(client: Client, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"import os; open({str(out)!r}, 'w').write(os.environ['KVORUM_LOCK_TOKEN']); raise SystemExit(7)"
    assert run(client, "lock", "x", "--", sys.executable, "-c", script).exit_code == 7
    assert int(out.read_text()) > 0
    assert client.locks.list() == []
    with client.locks.hold("x"):
        result = run(client, "lock", "--wait", "0", "x", "--", "true")
        assert isinstance(result.exception, Locked)
    assert isinstance(run(client, "lock", "x", "/no/such/program").exception, Refused)
    assert client.locks.list() == []


def test_locks_are_listed_and_taken_away_on_the_command_line(client: Client, proposer: Proposer) -> None:
    proposer.execute(Mkdir("priv/lock/y", parents=True))
    proposer.execute(LockAcquire("x", "s1"), Author("ann@pam", reason="resize"))
    proposer.execute(LockAcquire("x", "s2"), Author("bob@pam", reason="move"))
    lines = [line.split() for line in run(client, "locks").output.splitlines()]
    assert [line[:3] for line in lines[1:]] == [["x", "holds", "ann@pam"], ["x", "waits", "1"], ["y", "mkdir", "-"]]
    listed = json.loads(run(client, "locks", "-o", "json").output)
    assert listed[0]["waiters"][0]["reason"] == "move"
    refused = run(client, "unlock", "x")
    assert isinstance(refused.exception, Refused)
    assert "ann@pam" in str(refused.exception)
    assert run(client, "unlock", "x", "--force").exit_code == 0
    assert client.locks.list()[0].holder.author == "bob@pam"
    proposer.execute(LockRelease("x", "s2"))
    assert isinstance(run(client, "unlock", "x").exception, NotFound)


def test_a_full_store_takes_no_more_locks(proposer: Proposer, machine: StoreMachine) -> None:
    proposer.execute(Configure(max_entries=1000))
    proposer.execute(Mkdir("priv/lock", parents=True))
    for number in range(998):
        proposer.execute(Write(f"f{number}", b""))
    before = machine.state
    result = proposer.propose(LockAcquire("x", "s1"))
    assert isinstance(result, Refusal)
    assert result.code == Code.too_many_entries
    assert machine.state.locks == before.locks


def test_the_end_of_a_session_with_many_claims_is_one_step_for_the_tree(
    machine: StoreMachine, proposer: Proposer
) -> None:
    """Each lock by itself made the cluster stand still for more than a second; what comes of it is the same."""
    for session in ("a", "b"):
        for number in range(60):
            proposer.execute(LockAcquire(f"l{number:02}", session))
    for number in range(60, 90):
        proposer.execute(LockAcquire(f"l{number:02}", "a"))
    proposer.execute(LockAcquire("other", "b"))
    proposer.execute(LockAcquire("other", "a"))
    proposer.execute(Mkdir("priv/lock/by-mkdir"))
    before = machine.state.root
    made = 0
    rebuild = tree._rebuild

    def counted(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        return rebuild(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_rebuild", counted)
        index = proposer.execute(SessionEnd("a")).index
    assert made == 1
    state = machine.state
    below = lookup(state.root, ("priv", "lock"))
    assert isinstance(below, Directory)
    assert sorted(below.entries) == ["by-mkdir", *(f"l{number:02}" for number in range(60)), "other"]
    assert {holder(machine, f"l{number:02}") for number in range(60)} == {"b"}
    assert below.entries["l00"].version == index != below.entries["other"].version
    assert (state.root.count, state.root.size) == (before.count - 30, before.size)
    assert (set(state.locks.sessions), state.locks.claims) == ({"b"}, 61)
    batches, _upto = machine.events_after(index - 1, timeout_s=0)
    told = [type(event).__name__ for event in batches[0].events]
    assert (told.count("Deleted"), told.count("Written")) == (90, 60)
