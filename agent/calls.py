"""What stands in front of every service: who calls, whether they may, and what an error looks like from outside.

One interceptor a server. The services behind it can rely on `current_caller()` and raise `KvorumError`; they never see a call
that the policy table does not allow.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from kvorum.errors import KvorumError
from kvorum.rpc import from_rpc_error, to_status

from .access.caller import Caller, serve_as, with_claims
from .access.policy import check

log = logging.getLogger(__name__)

Identify = Callable[[Any], Awaitable[Caller]]


class CallGate(grpc.aio.ServerInterceptor):
    """`identify`: the caller as the connection proves it, or PermissionDenied. `explain`: last touch to an error's words."""

    def __init__(self, identify: Identify, explain: Callable[[KvorumError], KvorumError]) -> None:
        self._identify = identify
        self._explain = explain

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        maker, inner = _parts(handler)

        async def answer(request: Any, context: Any) -> Any:
            async with self._guarded(method, context):
                return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._guarded(method, context):
                responses = inner(request, context)
                if hasattr(responses, "__aiter__"):
                    async for response in responses:
                        yield response
                else:
                    await responses  # writes to the context itself

        wrapped = stream if handler.response_streaming else answer
        return maker(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @asynccontextmanager
    async def _guarded(self, method: str, context: Any) -> AsyncIterator[None]:
        """Let the call in, or end it with a status; also when the service behind fails."""
        try:
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            caller = with_claims(await self._identify(context), metadata)
            check(caller, method)
            serve_as(caller)
            yield
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            raise
        except grpc.aio.AioRpcError as error:  # a service that forwarded the call and left the answer as it was
            await self._abort(context, method, from_rpc_error(error))
        except KvorumError as error:
            await self._abort(context, method, error)
        except Exception:
            log.exception("%s: unexpected error", method)
            await context.abort(
                grpc.StatusCode.INTERNAL, "internal error; the log of kvorum-agent on this node tells more"
            )

    async def _abort(self, context: Any, method: str, error: KvorumError) -> None:
        log.debug("%s: %s: %s", method, error.reason, error)
        await context.abort_with_status(to_status(self._explain(error)))


def _parts(handler: Any) -> tuple[Callable[..., Any], Callable[[Any, Any], Any]]:
    """How to make a handler of this one's shape, and what it calls."""
    match (handler.request_streaming, handler.response_streaming):
        case (False, False):
            return grpc.unary_unary_rpc_method_handler, handler.unary_unary
        case (False, True):
            return grpc.unary_stream_rpc_method_handler, handler.unary_stream
        case (True, False):
            return grpc.stream_unary_rpc_method_handler, handler.stream_unary
        case _:
            return grpc.stream_stream_rpc_method_handler, handler.stream_stream
