"""History over a real socket: the service on a replica that lives in the test, through the client and the command line."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from clusterfs import snapshot
from clusterfs.commands import Configure, Delete, Mkdir, Move, Op, RaiseFormat, Write
from clusterfs.machine import StoreMachine
from clusterfs.proposer import Author, Proposer
from clusterfs.services.history import HistoryService
from clusterfs.services.settings import SettingsService
from clusterfs.services.store import StoreService
from clusterfs.settings import Settings
from kvorum.cli.store import store
from kvorum.cli.store_history import split_place
from kvorum.client import Client, connect
from kvorum.errors import AlreadyExists, HistoryGone, InvalidInput, NotFound, QuotaExceeded, Refused
from kvorum.v1 import history_pb2, history_pb2_grpc, settings_pb2_grpc, store_pb2_grpc

WARNED: list[str] = []


@pytest.fixture
def client(machine: StoreMachine, proposer: Proposer, tmp_path: Path) -> Iterator[Client]:
    proposer.execute(RaiseFormat())
    daemon: Any = SimpleNamespace(
        running=SimpleNamespace(machine=machine, proposer=proposer, note_warning=WARNED.append)
    )
    server = grpc.server(ThreadPoolExecutor(4))
    history_pb2_grpc.add_HistoryServiceServicer_to_server(HistoryService(daemon), server)
    settings_pb2_grpc.add_SettingsServiceServicer_to_server(SettingsService(daemon), server)
    store_pb2_grpc.add_StoreServiceServicer_to_server(StoreService(daemon), server)
    server.add_insecure_port(f"unix:{tmp_path}/sock")
    server.start()
    with connect(f"unix:{tmp_path}/sock") as connected:
        yield connected
    server.stop(0).wait(5)


@pytest.fixture
def do(proposer: Proposer) -> Any:
    def perform(op: Op, author: str = "ann@pam", reason: str = "") -> int:
        return proposer.execute(op, Author(author, "10.0.0.9", reason)).index

    return perform


def run(client: Client, *arguments: str) -> str:
    result = CliRunner().invoke(store, list(arguments), obj=SimpleNamespace(client=client), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_changes_come_in_pages_and_miss_none(client: Client, do: Any) -> None:
    for number in range(7):
        do(Write(f"d{number}/f", b"%d" % number, parents=True), reason=f"r{number}")
    found = list(client.history.changes(page_size=3))
    assert [change.index for change in found] == [index for index in range(8, 1, -1) for _entry in range(2)]
    assert {change.content for change in found} == {b""}
    (change,) = client.history.changes("d3/f", with_content=True)
    assert (change.author, change.source, change.reason, change.content) == ("ann@pam", "10.0.0.9", "r3", b"3")
    assert change.kind == history_pb2.CHANGE_KIND_WRITE


def test_a_version_is_what_was_there_at_an_index(client: Client, do: Any) -> None:
    first = do(Write("a", b"1"))
    do(Write("b", b""))
    second = do(Write("a", b"2"))
    gone = do(Delete("a"))
    assert client.history.version("a", first + 1).content == b"1"
    assert client.history.version("a", second).content == b"2"
    assert client.history.version("a").content == b"2"
    assert client.history.version("a", gone).gone
    with pytest.raises(NotFound, match="did not exist at"):
        client.history.version("b", first)


def test_what_is_compacted_is_said_to_be(client: Client, do: Any, machine: StoreMachine) -> None:

    do(Write("a", b"1"))
    do(Write("a", b"2"))
    last = do(Write("a", b"3"))
    kept = machine.state.history.trimmed(Settings(history_changes=1), 0)
    machine.restore(last, snapshot.encode(replace(machine.state, history=kept)))
    assert client.history.version("a", last - 1).content == b"2"
    with pytest.raises(HistoryGone, match=f"kept since {last - 1}") as caught:
        client.history.version("a", last - 2)
    assert caught.value.oldest_index == last - 1
    assert caught.value.remedy


def test_a_deleted_file_and_a_whole_directory_come_back(client: Client, do: Any) -> None:
    do(Mkdir("d"))
    do(Write("d/f", b"1"))
    then = do(Write("d/g", b"2"))
    do(Write("d/g", b"3"))
    do(Delete("d", recursive=True))
    (entry,) = client.history.restore("d/g")
    assert client.store.get("d/g").content == b"3"
    assert next(client.history.changes("d/g")).reason == f"restore of {entry.version - 2}"
    assert {entry.path for entry in client.history.restore("d", then, reason="back")} == {"d/f", "d/g"}
    assert [client.store.get(path).content for path in ("d/f", "d/g")] == [b"1", b"2"]
    assert list(client.history.restore("d", then)) == []
    with pytest.raises(InvalidInput):
        client.history.restore("d")
    with pytest.raises(Refused, match="no file d/g at"):
        client.history.restore("d/g", entry.version - 1)


def test_a_directory_comes_back_in_one_change_or_not_at_all(client: Client, do: Any, machine: StoreMachine) -> None:
    for number in range(5):
        do(Write(f"d/{number}", b"x" * 3000, parents=True))
    then = do(Write("nodes/n1/qemu-server/100.conf", b"old", parents=True))
    do(Write("d/new", b"stays"))
    for number in range(4):
        do(Write(f"d/{number}", b"changed"))
    do(Delete("d/4"))
    before = machine.view.index
    assert [entry.path for entry in client.history.restore("d", then)] == [f"d/{number}" for number in range(5)]
    assert machine.view.index == before + 1
    assert {change.index for change in islice(client.history.changes("d"), 5)} == {before + 1}
    assert client.store.get("d/new").content == b"stays"
    # A guest that is elsewhere now would be there twice.
    do(Write("nodes/n1/qemu-server/a", b"old"))
    mixed = do(Write("nodes/n1/qemu-server/z", b"old"))
    do(Move("nodes/n1/qemu-server/100.conf", "nodes/n1/100"))
    do(Write("nodes/n2/lxc/100.conf", b"", parents=True))
    do(Write("nodes/n1/qemu-server/z", b"new"))
    do(Write("nodes/n1/qemu-server/a", b"new"))
    with pytest.raises(AlreadyExists, match="100"):
        client.history.restore("nodes/n1/qemu-server", mixed)
    assert [client.store.get(f"nodes/n1/qemu-server/{name}").content for name in "az"] == [b"new", b"new"]
    # Limits are those of the whole, not of what is in between.
    for number in range(5):
        do(Delete(f"d/{number}"))
    do(Configure(max_entries=1000))
    for number in range(1000 - machine.state.root.count - 3):
        do(Mkdir(f"e{number}"))
    with pytest.raises(QuotaExceeded, match="at most 1000 entries"):
        client.history.restore("d", then)
    assert client.store.list("d")


def test_what_was_a_secret_can_be_forgotten_wherever_the_history_has_it(client: Client, do: Any) -> None:
    secret, shared = b"hunter2", b"shared"
    do(Write("priv/x.tmp", secret, parents=True))
    do(Write("other", shared))
    first = do(Move("priv/x.tmp", "priv/x"))
    do(Write("priv/x", shared))
    do(Write("priv/x", b"second"))
    last = do(Write("priv/x", b"now"))
    do(Mkdir("d"))
    copied = do(Write("d/copy", secret))
    do(Delete("d", recursive=True))
    assert run(client, "forget", "priv/x", "--reason", "leaked") == "3 versions of priv/x forgotten\n"
    assert "ann@pam" not in WARNED[-1]
    assert "priv/x" in WARNED[-1]
    held = {change.content for change in client.history.changes(with_content=True)}
    assert secret not in held
    assert b"second" not in held
    # What a file still holds is not forgotten, nor who changed what and when.
    assert shared in held
    assert client.store.get("priv/x").content == b"now"
    assert client.history.version("priv/x", last).content == b"now"
    assert client.history.version("priv/x", first).author == "ann@pam"
    assert client.history.version("priv/x", first).content.startswith(b"\0forgotten at")
    assert client.history.version("d/copy", copied).content.startswith(b"\0forgotten at")
    for place in (("priv/x", first), ("d", copied)):
        with pytest.raises(Refused, match="forgotten"):
            client.history.restore(*place)
    with pytest.raises(NotFound, match="holds nothing of it"):
        client.history.forget("priv/x")


def test_only_what_is_as_old_as_the_index_is_forgotten(client: Client, do: Any) -> None:
    old = do(Write("a", b"1"))
    do(Write("a", b"2"))
    do(Write("a", b"3"))
    assert client.history.forget("a", old) == 1
    assert client.history.version("a", old + 1).content == b"2"


def test_log_show_and_restore_on_the_command_line(client: Client, do: Any) -> None:
    do(Write("a", b"one\ntwo\n"), reason="first")
    do(Write("a", b"one\n2\n"), author="bob@pam")
    moved = do(Move("a", "b"))
    table = run(client, "log", "b")
    assert "bob@pam" in table
    assert "a -> b" in table
    assert [line.split()[0] for line in table.splitlines()[1:]] == [str(moved), str(moved - 1), str(moved - 2)]
    assert json.loads(run(client, "log", "b", "-o", "json", "-n", "1"))[0]["kind"] == "CHANGE_KIND_MOVE"
    assert run(client, "show", f"b@{moved - 2}") == "one\ntwo\n"
    assert run(client, "restore", f"b@{moved - 2}") == f"b is at version {moved + 1}\n"
    assert run(client, "restore", f"b@{moved - 2}") == "b is as it was then\n"
    assert client.store.get("b").content == b"one\ntwo\n"


def test_diff_and_blame_on_the_command_line(client: Client, do: Any) -> None:
    first = do(Write("a", b"one\ntwo\n"))
    do(Write("a", b"one\n2\n"), author="bob@pam")
    do(Write("a", b"zero\none\n2"), author="eve@pam")
    last = run(client, "diff", "a").splitlines()
    assert [line for line in last if line[0] in "+-\\"][2:] == ["+zero", "-2", "+2", "\\ No newline at end of file"]
    whole = run(client, "diff", "a", str(first))
    assert whole.startswith(f"--- a@{first}\t")
    assert "-two\n" in whole
    assert json.loads(run(client, "diff", "a", str(first), str(first + 1), "-o", "json"))["new"]["author"] == "bob@pam"
    assert run(client, "diff", "a", str(first), str(first)) == ""
    blamed = [(line.split()[0], line.split()[3], line.split()[4]) for line in run(client, "blame", "a").splitlines()]
    assert blamed == [
        (str(first + 2), "eve@pam", "zero"),
        (str(first), "ann@pam", "one"),
        (str(first + 2), "eve@pam", "2"),
    ]
    do(Delete("a"))
    assert "+++ /dev/null" in run(client, "diff", "a")


def test_limits_and_usage_on_the_command_line(client: Client, do: Any) -> None:
    assert json.loads(run(client, "limits", "-o", "json"))["max_file_bytes"] == "1048576"
    assert "2097152" in run(client, "limits", "--file-bytes", "2M", "--history-days", "0", "--entries", "1000")
    assert json.loads(run(client, "limits", "-o", "json"))["history_days"] == "0"
    for number in range(800):
        do(Write(f"f{number}", b""))
    text = run(client, "usage")
    assert "max_entries" in text
    assert "warning: the store holds 800 entries, 80 % of its limit of 1000" in text
    with pytest.raises(InvalidInput, match="max_file_bytes is"):
        run(client, "limits", "--file-bytes", "4M")
    with pytest.raises(InvalidInput, match="no number"):
        run(client, "limits", "--file-bytes", "much")


def test_a_place_is_a_path_and_perhaps_an_index() -> None:
    assert split_place("a/b@12") == ("a/b", 12)
    assert split_place("a@b") == ("a@b", 0)
    assert split_place("a") == ("a", 0)
    with pytest.raises(InvalidInput):
        split_place("a@0")
