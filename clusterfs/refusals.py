"""What a refusal means to a caller: an errno at the mount, a `KvorumError` over the API. Tables, nothing else."""

import errno
from typing import assert_never

from clusterfs.outcomes import Code, Refusal
from kvorum import errors

_ERRNO = {
    Code.not_found: errno.ENOENT,
    Code.exists: errno.EEXIST,
    Code.stale: errno.ESTALE,
    Code.not_directory: errno.ENOTDIR,
    Code.is_directory: errno.EISDIR,
    Code.not_empty: errno.ENOTEMPTY,
    Code.access: errno.EACCES,
    Code.invalid: errno.EINVAL,
    Code.name_too_long: errno.ENAMETOOLONG,
    Code.file_too_big: errno.EFBIG,
    Code.store_full: errno.ENOSPC,
    Code.too_many_entries: errno.EDQUOT,
    Code.refused: errno.EPERM,
    Code.fenced: errno.EPERM,
    Code.forgotten: errno.EIO,
    Code.locked: errno.EBUSY,
}


def to_errno(refusal: Refusal) -> int:
    return _ERRNO[refusal.code]


def error_errno(error: errors.KvorumError) -> int:
    """EACCES without quorum, as pmxcfs answers; ENOSPC without space for the log; EAGAIN when too much is under way;
    ETIMEDOUT when nobody knows whether the change was made."""
    match error:
        case errors.DiskFull():
            return errno.ENOSPC
        case errors.Busy():
            return errno.EAGAIN
        case errors.NoQuorum() | errors.PermissionDenied():
            return errno.EACCES
        case errors.OutcomeUnknown() | errors.Timeout():
            return errno.ETIMEDOUT
        case _:
            return errno.EIO


def to_error(refusal: Refusal) -> errors.KvorumError:
    """The error that a service raises for a refused command."""
    where = f"{refusal.path}: {refusal.message}" if refusal.path else refusal.message
    details = {"path": refusal.path} if refusal.path else {}
    match refusal.code:
        case Code.not_found:
            return errors.NotFound(where, details=details)
        case Code.exists:
            return errors.AlreadyExists(where, details=details)
        case Code.stale:
            return errors.StaleVersion(where, remedy="read it again and decide anew", details=details)
        case Code.invalid | Code.name_too_long:
            return errors.InvalidInput(where, field="path", details=details)
        case Code.file_too_big | Code.store_full | Code.too_many_entries:
            return errors.QuotaExceeded(where, remedy="delete what is not needed", details=details)
        case Code.access:
            return errors.PermissionDenied(where, details=details)
        case Code.fenced:
            return errors.Fenced(where, details=details)
        case Code.forgotten:
            return errors.OutcomeUnknown(where, remedy="read it before trying again", details=details)
        case Code.locked:
            return errors.Locked(where, remedy="see 'kvorum store locks'", details=details)
        case Code.not_directory | Code.is_directory | Code.not_empty | Code.refused:
            return errors.Refused(where, details=details)
    assert_never(refusal.code)
