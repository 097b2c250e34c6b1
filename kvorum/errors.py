"""The errors that somebody catches, and nothing else: one root, a class where a caller acts differently.

Each error says what is wrong and, where one exists, what to do about it (`remedy`). Foreign errors (libvirt, gRPC, OSError)
are chained to one of these at the boundary where they arise. `kvorum.rpc` maps them to and from gRPC statuses; the command
line prints them. A broken invariant is an `AssertionError`, not one of these.
"""

from collections.abc import Mapping, Sequence


class KvorumError(Exception):
    """Root of all. `reason` is the stable, machine-readable name that travels in google.rpc.ErrorInfo."""

    reason = "INTERNAL"

    def __init__(self, message: str, *, remedy: str = "", details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details: dict[str, str] = dict(details or {})


class InvalidInput(KvorumError):
    """A field of a request or a line of a file is wrong; `field` names it."""

    reason = "INVALID_INPUT"

    def __init__(
        self, message: str, *, field: str = "", remedy: str = "", details: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, remedy=remedy, details={**(details or {}), **({"field": field} if field else {})})

    @property
    def field(self) -> str:
        return self.details.get("field", "")


class ConfigError(InvalidInput):
    """A configuration file does not parse; `path` and `line` (from 1, 0 when unknown) say where."""

    reason = "CONFIG_ERROR"

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        line: int = 0,
        field: str = "",
        remedy: str = "",
        details: Mapping[str, str] | None = None,
    ) -> None:
        where = {"path": path} if path else {}
        if line:
            where["line"] = str(line)
        super().__init__(message, field=field, remedy=remedy, details={**(details or {}), **where})


class NotFound(KvorumError):
    reason = "NOT_FOUND"


class AlreadyExists(KvorumError):
    reason = "ALREADY_EXISTS"


class StaleVersion(KvorumError):
    """Somebody changed the entry since the caller read it. Read again and decide anew."""

    reason = "STALE_VERSION"


class NoQuorum(KvorumError):
    """No majority: nothing can be written. Reads go on."""

    reason = "NO_QUORUM"

    def __init__(
        self,
        message: str = "no quorum",
        *,
        missing: Sequence[str] = (),
        remedy: str = "",
        details: Mapping[str, str] | None = None,
    ) -> None:
        names = {"missing": ",".join(missing)} if missing else {}
        super().__init__(message, remedy=remedy, details={**(details or {}), **names})

    @property
    def missing(self) -> list[str]:
        """Names of the members that do not answer."""
        return [name for name in self.details.get("missing", "").split(",") if name]


class DiskFull(NoQuorum):
    """This node has no space for the log: nothing can be written through it. Reads go on, and it passes when there is space."""

    reason = "DISK_FULL"


class OutcomeUnknown(KvorumError):
    """The write was sent and no answer came in time: it may or may not be done. Read before trying again."""

    reason = "OUTCOME_UNKNOWN"


class Unreachable(KvorumError):
    """The process or node that should answer does not."""

    reason = "UNREACHABLE"


class Refused(KvorumError):
    """The request is well formed but the present state forbids it (a running guest cannot be deleted)."""

    reason = "REFUSED"


class Fenced(Refused):
    """The node's lease is gone: it may not run HA guests until it has a new one."""

    reason = "FENCED"


class Locked(KvorumError):
    """Something else works on it at the moment."""

    reason = "LOCKED"


class HistoryGone(KvorumError):
    """What was asked for is older than the history that is kept; every change after `oldest_index` is there."""

    reason = "HISTORY_GONE"

    def __init__(
        self, message: str, *, oldest_index: int = 0, remedy: str = "", details: Mapping[str, str] | None = None
    ) -> None:
        known = {"oldest_index": str(oldest_index)} if oldest_index else {}
        super().__init__(message, remedy=remedy, details={**(details or {}), **known})

    @property
    def oldest_index(self) -> int:
        """0 when it is not known."""
        digits = self.details.get("oldest_index", "")
        return int(digits) if digits.isascii() and digits.isdigit() else 0


class QuotaExceeded(KvorumError):
    reason = "QUOTA_EXCEEDED"


class Busy(KvorumError):
    """Too much is under way; nothing was done. Try again in a moment."""

    reason = "BUSY"


class PermissionDenied(KvorumError):
    reason = "PERMISSION_DENIED"


class CommandFailed(KvorumError):
    """A program that we ran ended with an error; the message holds the last line it said."""

    reason = "COMMAND_FAILED"


class Unsupported(KvorumError):
    reason = "UNSUPPORTED"


class TaskFailed(KvorumError):
    """A task that the caller waited for ended with an error."""

    reason = "TASK_FAILED"


class Cancelled(KvorumError):
    reason = "CANCELLED"


class Timeout(KvorumError):
    """Waiting was given up; the work itself goes on."""

    reason = "TIMEOUT"
