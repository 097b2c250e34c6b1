"""Calls without a thread of their own, through grpc's real server; and that its source is the one that was read."""

import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc._server as upstream
import pytest

from clusterfs import direct
from clusterfs.direct import DirectPool
from clusterfs.services.calls import answering_later
from kvorum.errors import NotFound

# Of the functions that `direct` replaces, calls or is called by. When one changes: read the difference, go through `direct`, and
# only then write the new sum here.
READ = "26ae89d51e526fae"
NAMES = (
    "_unary_request",
    "_receive_message",
    "_serialized_request",
    "_handle_unary_unary",
    "_unary_response_in_pool",
    "_call_behavior",
    "_status",
    "_abort",
    "_possibly_finish_call",
    "_process_event_and_continue",
)
Answer = Callable[[bytes | Exception], None]


def test_the_library_is_the_one_that_was_read() -> None:
    source = "".join(inspect.getsource(getattr(upstream, name)) for name in NAMES)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == READ
    assert grpc.__version__.startswith(direct.SERIES)


class Handlers:
    def __init__(self) -> None:
        self.threads: list[str] = []
        self.later: list[Answer] = []
        self.came = threading.Semaphore(0)

    @answering_later
    def now(self, request: bytes, _context: grpc.ServicerContext, answer: Answer) -> None:
        self.threads.append(threading.current_thread().name)
        if request == b"missing":
            raise NotFound("it is not there")
        if request == b"broken":
            raise ZeroDivisionError
        answer(request * 2)

    @answering_later
    def wait(self, _request: bytes, _context: grpc.ServicerContext, answer: Answer) -> None:
        self.later.append(answer)
        self.came.release()

    def plain(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        self.threads.append(threading.current_thread().name)
        return request


class Served:
    def __init__(self, socket: Path) -> None:
        self.handlers = Handlers()
        self.server = grpc.server(DirectPool(max_workers=4, thread_name_prefix="call"))
        methods = {
            name: grpc.unary_unary_rpc_method_handler(getattr(self.handlers, name)) for name in ("now", "wait", "plain")
        }
        self.server.add_registered_method_handlers("test.Service", methods)
        self.server.add_insecure_port(f"unix:{socket}")
        self.server.start()
        self.channel = grpc.insecure_channel(f"unix:{socket}")

    def method(self, name: str) -> Any:
        return self.channel.unary_unary(f"/test.Service/{name}")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "socket")
    yield made
    made.channel.close()
    assert made.server.stop(0.5).wait(10)


def test_a_call_that_needs_no_thread_gets_none_and_another_gets_one(served: Served) -> None:
    assert served.method("now")(b"x", timeout=5) == b"xx"
    assert served.method("plain")(b"x", timeout=5) == b"x"
    direct_thread, pool_thread = served.handlers.threads
    assert not direct_thread.startswith("call")
    assert pool_thread.startswith("call")


def test_errors_end_a_call_as_they_do_in_a_thread(served: Served) -> None:
    now = served.method("now")
    with pytest.raises(grpc.RpcError) as missing:
        now(b"missing", timeout=5)
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    assert missing.value.details() == "it is not there"
    assert any(key == "grpc-status-details-bin" for key, _ in missing.value.trailing_metadata())
    with pytest.raises(grpc.RpcError) as broken:
        now(b"broken", timeout=5)
    assert broken.value.code() is grpc.StatusCode.UNKNOWN
    assert now(b"y", timeout=5) == b"yy"


def test_answers_come_from_any_thread_and_in_any_order(served: Served) -> None:
    calls = [served.method("wait").future(b"x", timeout=10) for _ in range(50)]
    for _ in calls:
        assert served.handlers.came.acquire(timeout=5)
    # Far more than the pool has threads; others are served meanwhile.
    assert served.method("plain")(b"z", timeout=5) == b"z"
    threads = [
        threading.Thread(target=answer, args=(b"%d" % number,))
        for number, answer in enumerate(reversed(served.handlers.later))
    ]
    for thread in threads:
        thread.start()
    assert {call.result() for call in calls} == {b"%d" % number for number in range(50)}


def test_an_answer_to_a_caller_that_has_gone_harms_nothing(served: Served) -> None:
    call = served.method("wait").future(b"x", timeout=10)
    assert served.handlers.came.acquire(timeout=5)
    call.cancel()
    late = served.method("wait").future(b"x", timeout=0.05)
    assert served.handlers.came.acquire(timeout=5)
    assert late.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    for answer in served.handlers.later:
        answer(b"too late")
    assert served.method("now")(b"x", timeout=5) == b"xx"


def test_a_call_without_a_request_is_ended(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.channel.stream_unary("/test.Service/now")(iter(()), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_request_that_cannot_be_read_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream._common, "deserialize", lambda _raw, _deserialise: None)
    with pytest.raises(grpc.RpcError) as caught:
        served.method("now")(b"x", timeout=5)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_a_stop_does_not_wait_for_answers_that_never_come(tmp_path: Path) -> None:
    served = Served(tmp_path / "socket")
    call = served.method("wait").future(b"x", timeout=30)
    assert served.handlers.came.acquire(timeout=5)
    assert served.server.stop(0.1).wait(10)
    assert isinstance(call.exception(), grpc.RpcError)
    served.handlers.later[0](b"nobody hears it")
    served.channel.close()


def test_under_another_series_every_call_gets_its_thread(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "SERIES", "0.")
    assert served.method("now")(b"x", timeout=5) == b"xx"
    with pytest.raises(grpc.RpcError) as missing:
        served.method("now")(b"missing", timeout=5)
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    assert all(name.startswith("call") for name in served.handlers.threads)
