"""What every handler shares: errors become statuses in one place, callers' names and deadlines are read in one place."""

import functools
import logging
import queue
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import grpc

from clusterfs.proposer import DEADLINE_S, Author
from kvorum.errors import KvorumError
from kvorum.rpc import to_status
from kvorum.v1.store_pb2 import Fencing

log = logging.getLogger(__name__)

AUTHOR_KEY = "kvorum-author"
SOURCE_KEY = "kvorum-source"

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def answering(
    handler: Callable[[Any, _Request, grpc.ServicerContext], _Response],
) -> Callable[[Any, _Request, grpc.ServicerContext], _Response]:
    """A handler whose `KvorumError` ends the call with the status that stands for it."""

    @functools.wraps(handler)
    def answer(self: Any, request: _Request, context: grpc.ServicerContext) -> _Response:
        try:
            return handler(self, request, context)
        except KvorumError as error:
            end(context, error)

    return answer


def streaming(
    handler: Callable[[Any, _Request, grpc.ServicerContext], Iterator[_Response]],
) -> Callable[[Any, _Request, grpc.ServicerContext], Iterator[_Response]]:
    """As `answering`, for a stream."""

    @functools.wraps(handler)
    def stream(self: Any, request: _Request, context: grpc.ServicerContext) -> Iterator[_Response]:
        try:
            yield from handler(self, request, context)
        except KvorumError as error:
            end(context, error)

    return stream


# What becomes of a call: the response, or the error that ends it.
Answer = Any
Begun = Callable[[Any, Any, grpc.ServicerContext, Callable[[Answer], None]], None]
_Begun = Callable[[Any, _Request, grpc.ServicerContext, Callable[[_Response | Exception], None]], None]


def answering_later(begun: _Begun[_Request, _Response]) -> Callable[[Any, _Request, grpc.ServicerContext], _Response]:
    """A handler that never waits: `begun` is given where the answer goes, once and from any thread. `clusterfs.direct` runs it
    where the request arrives; run as any other handler it waits for that answer."""

    def safely(self: Any, request: _Request, context: grpc.ServicerContext, answer: Callable[[Answer], None]) -> None:
        try:
            begun(self, request, context, answer)
        except KvorumError as error:
            answer(error)

    @functools.wraps(begun)
    def wait(self: Any, request: _Request, context: grpc.ServicerContext) -> _Response:
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        safely(self, request, context, answers.put)
        response: _Response = respond(context, answers.get())
        return response

    wait.begun = safely  # type: ignore[attr-defined]
    return wait


def respond(context: grpc.ServicerContext, answer: Answer) -> Any:
    """To be returned by a handler whose answer is there."""
    if isinstance(answer, KvorumError):
        end(context, answer)
    if isinstance(answer, Exception):
        raise answer
    return answer


def end(context: grpc.ServicerContext, error: KvorumError) -> NoReturn:
    log.debug("refused: %s", error)
    context.abort_with_status(to_status(error))
    raise AssertionError("abort returned")


def author(context: grpc.ServicerContext, reason: str = "", fencing: Fencing | None = None) -> Author:
    """Who asks: the agent passes on whom it has authenticated; on this socket everybody is root."""
    names = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
    who, source = names.get(AUTHOR_KEY, "root@pam"), names.get(SOURCE_KEY, "")
    if fencing is None or not fencing.lock:
        return Author(who, source, reason)
    return Author(who, source, reason, lock=fencing.lock, token=fencing.token)


def deadline(context: grpc.ServicerContext, default_s: float = DEADLINE_S) -> float:
    """Seconds for the work, a little less than the caller waits, so that the answer still reaches it."""
    left: float | None = context.time_remaining()
    if left is None or left > 3600:
        return default_s
    return max(0.05, left * 0.95)
