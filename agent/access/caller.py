"""Who is calling. Set once per call by the server's interceptor, read by services that record an author or forward a call.

A caller is proved by the connection (its certificate, or the local socket that only root can open), never by what the
message says. The one exception is forwarding: an agent that passes a call on names the user it acts for, and only a
node's certificate may do that. Whether a caller may call a method is for `agent.access.policy`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from kvorum.errors import PermissionDenied

ROOT_USER = "root@pam"

# What a caller may say of itself. The first counts on the local socket only, the second from nodes only.
CALLER_KEY = "kvorum-caller"
ON_BEHALF_OF_KEY = "kvorum-on-behalf-of"
HA_NAME = "ha"


class CallerKind(StrEnum):
    user = "user"
    node = "node"
    token = "token"  # noqa: S105 - the word, not a secret
    ha = "ha"


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` is `user@realm`, a node's name, a join token's id, or `ha`. `via`: the node that forwarded the call."""

    kind: CallerKind
    name: str
    via: str = ""
    # Came over the local socket.
    is_local: bool = False

    @property
    def author(self) -> str:
        """What the store's history and tasks record: `root@pam`, `node/n2`, `token/ab12`, `ha`."""
        if self.kind in (CallerKind.user, CallerKind.ha):
            return self.name
        return f"{self.kind}/{self.name}"

    @property
    def is_root(self) -> bool:
        """May do anything that nodes and tokens do not have to themselves."""
        return self.kind is CallerKind.ha or (self.kind is CallerKind.user and self.name == ROOT_USER)

    @property
    def is_node(self) -> bool:
        """A member's agent speaks, for itself or for somebody else."""
        return self.kind is CallerKind.node or bool(self.via)


LOCAL_ROOT = Caller(CallerKind.user, ROOT_USER, is_local=True)

_current: ContextVar[Caller] = ContextVar("kvorum_caller")


def current_caller() -> Caller:
    """The caller of the call being served. PermissionDenied outside of one, so that a forgotten interceptor lets nobody in."""
    try:
        return _current.get()
    except LookupError:
        raise PermissionDenied("nobody is known to be calling") from None


@contextmanager
def calling_as(caller: Caller) -> Iterator[None]:
    """Do the agent's own work, or a test's, as this caller."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)


def serve_as(caller: Caller) -> None:
    """For the interceptor: each call is served in a context of its own, which ends with it."""
    _current.set(caller)


def forwarded(caller: Caller | None = None) -> tuple[tuple[str, str], ...]:
    """Metadata with which this node passes the caller's (by default the present one's) call on to another agent."""
    caller = caller or current_caller()
    if caller.kind in (CallerKind.user, CallerKind.ha):
        return ((ON_BEHALF_OF_KEY, caller.name),)
    return ()


def with_claims(proved: Caller, metadata: Mapping[str, str]) -> Caller:
    """The caller after what it says of itself has been taken into account.

    Raises PermissionDenied when somebody claims what only others may: a silent downgrade would hide the attempt.
    """
    behalf, claimed = metadata.get(ON_BEHALF_OF_KEY, ""), metadata.get(CALLER_KEY, "")
    if behalf:
        if proved.kind is not CallerKind.node:
            raise PermissionDenied(f"only nodes may pass {ON_BEHALF_OF_KEY}")
        if behalf == HA_NAME:
            return Caller(CallerKind.ha, HA_NAME, via=proved.name)
        return Caller(CallerKind.user, parse_user(behalf), via=proved.name)
    if claimed:
        if claimed != HA_NAME or not proved.is_local:
            raise PermissionDenied(f"only processes of this node may pass {CALLER_KEY}")
        return Caller(CallerKind.ha, HA_NAME, is_local=True)
    return proved


def parse_user(text: str) -> str:
    """`user@realm`; raises PermissionDenied, since only a caller's proof is parsed with this."""
    name, at, realm = text.rpartition("@")
    if not (name and at and realm) or not text.isascii() or not text.isprintable() or len(text) > 128:
        raise PermissionDenied(f"{text!r} is no user")
    return text
