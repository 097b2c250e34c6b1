"""Status and the cluster log on the command line, from an API that lives in the test."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from google.protobuf.timestamp_pb2 import Timestamp

from kvorum.cli.store import store
from kvorum.cli.store_status import followed
from kvorum.v1 import status_pb2 as pb


def line(uid: int, *, node: str = "n1", seconds: int = 1_700_000_000) -> pb.LogLine:
    return pb.LogLine(
        time=Timestamp(seconds=seconds + uid),
        node=node,
        priority=4,
        tag="ha",
        pid=7,
        user="root",
        message=f"m{uid}",
        uid=uid,
    )


class FakeApi:
    def __init__(self, *answers: list[pb.LogLine]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, str]] = []

    def log(self, *, limit: int = 50, user: str = "") -> list[pb.LogLine]:
        self.asked.append((limit, user))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def list(self, *, node: str = "", prefix: str = "", with_values: bool = False) -> pb.ListStatusResponse:
        value = pb.StatusValue(key=f"{prefix}load", size_bytes=3, value=b"0.5" if with_values else b"")
        return pb.ListStatusResponse(nodes=[pb.NodeStatus(node=node or "n1", age_seconds=2.4, values=[value])])

    def get(self, key: str, *, node: str = "") -> pb.GetStatusResponse:
        return pb.GetStatusResponse(value=pb.StatusValue(key=key, value=f"{node}:{key}\0".encode()))


def run(api: FakeApi, *arguments: str) -> str:
    session: Any = SimpleNamespace(client=SimpleNamespace(status=api))
    result = CliRunner().invoke(store, list(arguments), obj=session, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_status_lists_keys_and_shows_one_value_as_it_is() -> None:
    rows = run(FakeApi([]), "status", "n2").splitlines()
    assert [row.split() for row in rows] == [["NODE", "AGE", "SIZE", "KEY"], ["n2", "2", "s", "3", "load"]]
    assert run(FakeApi([]), "status", "n2", "tasklist") == "n2:tasklist\0"
    shown = json.loads(run(FakeApi([]), "status", "-o", "json", "--prefix", "x/"))
    assert shown["nodes"][0]["values"][0]["key"] == "x/load"
    assert shown["nodes"][0]["values"][0]["value"] == "MC41"


def test_the_cluster_log_is_a_table_or_json() -> None:
    api = FakeApi([line(2), line(1)])
    rows = run(api, "clusterlog", "-n", "2", "--user", "root").splitlines()
    assert rows[0].split() == ["TIME", "NODE", "PRIORITY", "TAG", "USER", "MESSAGE"]
    assert [row.split()[2:] for row in rows[1:]] == [
        ["n1", "warning", "ha", "root", "m2"],
        ["n1", "warning", "ha", "root", "m1"],
    ]
    assert api.asked == [(2, "root")]
    assert [one["message"] for one in json.loads(run(api, "clusterlog", "-o", "json"))] == ["m2", "m1"]


def test_following_shows_each_line_once_and_those_that_come_late() -> None:
    many = [line(uid) for uid in range(30, 0, -1)]
    late = line(3, node="n2")
    api = FakeApi(many, [line(31), *many], [line(31), *many], [line(32), line(31), *many[:-3], late, *many[-3:]])
    waits: list[float] = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) > 3:
            raise KeyboardInterrupt

    shown: list[pb.LogLine] = []
    with pytest.raises(KeyboardInterrupt):
        for one in followed(api, 2, "", pause=pause):  # type: ignore[arg-type]
            shown.append(one)
    assert [(one.node, one.uid) for one in shown] == [("n1", 29), ("n1", 30), ("n1", 31), ("n2", 3), ("n1", 32)]
