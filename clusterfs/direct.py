"""A pool for grpc's server in which calls that need no thread get none.

grpc hands each call to a thread, which waits for the request, runs the handler and sends the answer: three changes of threads
before a read of some microseconds is answered, and two more for a commit; on a virtual machine each costs 30 to 50 us. A
handler that never waits (`services.calls.answering_later`) is begun here by the thread that has received the request, and
answers from whichever thread knows the answer. All else goes to the threads as ever.

There is no public way to that. What is used of `grpc._server` is the arrival of a request, written as its `_unary_request` is but
without the wait; answers leave through its own `_unary_response_in_pool`. `test_clusterfs_direct` pins the source that was
read, and with another series of grpc every call gets its thread: slower, and right.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import grpc._server as upstream

from clusterfs.services.calls import Answer, Begun, respond

log = logging.getLogger(__name__)

# Whose source was read.
SERIES = "1.85."
_cygrpc: Any = upstream.cygrpc  # type: ignore[attr-defined]
_common: Any = upstream._common  # type: ignore[attr-defined]
_DONE: "Future[Any]" = Future()
_DONE.set_result(None)


class DirectPool(ThreadPoolExecutor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """grpc calls this in the thread that takes events from its queue, where `received` will run too."""
        is_known = bool(args) and args[0] is upstream._unary_response_in_pool and grpc.__version__.startswith(SERIES)
        begun: Begun | None = getattr(args[3], "begun", None) if is_known else None
        if begun is None:
            return super().submit(fn, *args, **kwargs)
        work, event, state, handler, _request, deserialise, serialise = args

        def answer(request: Any, value: Answer) -> None:
            # With an answer that is there already, grpc's own way of running a handler does no more than send it.
            def ready(_request: Any, context: grpc.ServicerContext) -> Any:
                return respond(context, value)

            fn(work, event, state, ready, lambda: request, deserialise, serialise)

        def begin(request: Any) -> None:
            try:
                context = upstream._Context(event, state, deserialise)
                begun(handler.__self__, request, context, lambda value: answer(request, value))
            except Exception as error:
                log.exception("a call could not be begun")
                answer(request, error)

        def received(message: Any) -> Any:
            raw: Any = upstream._serialized_request(message)
            request = _common.deserialize(raw, deserialise) if raw is not None else None
            if request is not None:
                begin(request)
            with state.condition:
                if raw is None:
                    if state.client is upstream._OPEN:
                        state.client = upstream._CLOSED
                    upstream._abort(state, event.call, _cygrpc.StatusCode.unimplemented, b"one request is needed")
                elif request is None:
                    upstream._abort(state, event.call, _cygrpc.StatusCode.internal, b"the request cannot be read")
                return upstream._possibly_finish_call(state, upstream._RECEIVE_MESSAGE_TOKEN)

        with state.condition:
            event.call.start_server_batch((_cygrpc.ReceiveMessageOperation(0),), received)
            state.due.add(upstream._RECEIVE_MESSAGE_TOKEN)
        return _DONE
