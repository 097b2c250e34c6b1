"""Errors across a process boundary: `KvorumError` to google.rpc.Status with details, and back.

Every service maps errors here and only here, so that a client in any language sees a canonical code, an ErrorInfo (reason,
domain `kvorum`, metadata), a Help-like remedy in LocalizedMessage and, for bad input, a BadRequest with the field.
https://google.aip.dev/193
"""

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from kvorum import errors

DOMAIN = "kvorum"

_CODES: dict[str, int] = {
    errors.InvalidInput.reason: code_pb2.INVALID_ARGUMENT,
    errors.ConfigError.reason: code_pb2.INVALID_ARGUMENT,
    errors.NotFound.reason: code_pb2.NOT_FOUND,
    errors.AlreadyExists.reason: code_pb2.ALREADY_EXISTS,
    errors.StaleVersion.reason: code_pb2.ABORTED,
    errors.NoQuorum.reason: code_pb2.UNAVAILABLE,
    errors.DiskFull.reason: code_pb2.UNAVAILABLE,
    errors.OutcomeUnknown.reason: code_pb2.DEADLINE_EXCEEDED,
    errors.Unreachable.reason: code_pb2.UNAVAILABLE,
    errors.Refused.reason: code_pb2.FAILED_PRECONDITION,
    errors.Fenced.reason: code_pb2.FAILED_PRECONDITION,
    errors.Locked.reason: code_pb2.ABORTED,
    errors.HistoryGone.reason: code_pb2.OUT_OF_RANGE,
    errors.QuotaExceeded.reason: code_pb2.RESOURCE_EXHAUSTED,
    errors.Busy.reason: code_pb2.RESOURCE_EXHAUSTED,
    errors.PermissionDenied.reason: code_pb2.PERMISSION_DENIED,
    errors.CommandFailed.reason: code_pb2.INTERNAL,
    errors.Unsupported.reason: code_pb2.UNIMPLEMENTED,
    errors.TaskFailed.reason: code_pb2.ABORTED,
    errors.Cancelled.reason: code_pb2.CANCELLED,
    errors.Timeout.reason: code_pb2.DEADLINE_EXCEEDED,
}

_CLASSES: dict[str, type[errors.KvorumError]] = {
    cls.reason: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.KvorumError)
}

_BARE: dict[grpc.StatusCode, type[errors.KvorumError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: errors.Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Timeout,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Refused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.QuotaExceeded,
    grpc.StatusCode.OUT_OF_RANGE: errors.HistoryGone,
}


def to_status(error: errors.KvorumError) -> grpc.Status:
    """The status a service ends a call with: `context.abort_with_status(to_status(error))`."""
    status = status_pb2.Status(code=_CODES.get(error.reason, code_pb2.INTERNAL), message=error.message)
    _attach(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details))
    if error.remedy:
        _attach(status, error_details_pb2.LocalizedMessage(locale="en", message=error.remedy))
    if isinstance(error, errors.InvalidInput) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        _attach(status, error_details_pb2.BadRequest(field_violations=[violation]))
    grpc_status: grpc.Status = rpc_status.to_status(status)
    return grpc_status


def from_rpc_error(error: grpc.RpcError) -> errors.KvorumError:
    """What a client raises in place of a bare RpcError; the remedy and details survive the wire."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    code = error.code()
    message = error.details() or code.name
    status = _status_of(error)
    info, remedy = error_details_pb2.ErrorInfo(), ""
    for detail in status.details if status is not None else ():
        localized = error_details_pb2.LocalizedMessage()
        if detail.Unpack(info):
            continue
        if detail.Unpack(localized):
            remedy = localized.message
    cls = _CLASSES.get(info.reason) if info.domain == DOMAIN else None
    if cls is None:
        cls = _BARE.get(code, errors.KvorumError)
    return cls(message, remedy=remedy, details=dict(info.metadata))


def _attach(status: status_pb2.Status, detail: object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)


def _status_of(error: grpc.Call | grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """The google.rpc.Status in the trailing metadata; a malformed or foreign one counts as none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                return status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode("latin-1"))
            except Exception:  # protobuf's DecodeError has no stable home across its implementations
                return None
    return None
