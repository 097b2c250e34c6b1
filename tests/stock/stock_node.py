"""The library as it comes (pysyncobj 0.3.17), with a transport and a clock that the test owns."""

from pathlib import Path

import pysyncobj.syncobj
import pytest
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

NO_OP = b"\x01"
Entry = tuple[bytes, int, int]
Said = dict[str, object]


class Wire(Transport):  # type: ignore[misc]
    """Keeps what is sent; the test speaks for the others."""

    def __init__(self) -> None:
        super().__init__(None, None, ())
        self.sent: list[tuple[str, Said]] = []

    def send(self, node: Node, message: Said) -> bool:
        self.sent.append((node.id, message))
        return True


class Register(SyncObj):  # type: ignore[misc]
    """Remembers what it applied, in order; refuses `bad` by raising."""

    def __init__(self, uid: str, others: list[str], wire: Wire, conf: SyncObjConf) -> None:
        super().__init__(Node(uid), [Node(other) for other in others], conf=conf, transport=wire)
        self.values: list[str] = []

    @replicated
    def put(self, value: str) -> int:
        if value == "bad":
            raise ValueError("a faulty machine")
        self.values.append(value)
        return len(self.values)


class Stock:
    """n1 of n1 to n<size>."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, size: int = 3, **options: object) -> None:
        self.now = 100.0
        monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", lambda: self.now)
        self.others = [f"n{number}" for number in range(2, size + 1)]
        self.options = options
        self.start()

    def start(self) -> Register:
        """Also what comes after a crash: nothing of the former one is closed or told."""
        self.wire = Wire()
        conf = SyncObjConf(autoTick=False, **self.options)
        self.raft = Register("n1", self.others, self.wire, conf)
        for other in self.others:
            self.wire._onNodeConnected(Node(other))
        return self.raft

    def say(self, uid: str, **message: object) -> list[Said]:
        """What n1 answers to it."""
        self.wire.sent.clear()
        self.wire._onMessageReceived(Node(uid), message)
        return [said for target, said in self.wire.sent if target == uid]

    def append(self, uid: str, prev: int, entries: list[Entry], *, commit: int, term: int = 1) -> list[Said]:
        prev_term = 0 if prev == 1 else 1
        return self.say(
            uid,
            type="append_entries",
            term=term,
            commit_index=commit,
            entries=entries,
            prevLogIdx=prev,
            prevLogTerm=prev_term,
        )

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.raft.doTick(0.0)

    def lead(self) -> int:
        """Make n1 the leader, by everybody's vote; its term."""
        self.tick(10.0)
        for other in self.others:
            self.say(other, type="response_vote", term=self.raft.raftCurrentTerm)
        assert self.raft._isLeader()
        return int(self.raft.raftCurrentTerm)

    def command(self, value: str) -> bytes:
        """The bytes with which this library writes `put(value)` to its log."""
        self.raft.put(value)
        command, _ = self.raft._SyncObj__commandsQueue.get_nowait()
        return bytes(command)

    @property
    def last_index(self) -> int:
        return int(self.raft._SyncObj__getCurrentLogIndex())


def no_ops(first: int, last: int, term: int = 1) -> list[Entry]:
    return [(NO_OP, index, term) for index in range(first, last + 1)]


def journal_of(directory: Path) -> str:
    return str(directory / "journal")
