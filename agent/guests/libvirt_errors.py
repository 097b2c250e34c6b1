"""What libvirt says went wrong, in kvorum's words: cause first, and what to do about it. Pure.

libvirt has few codes, and most that matter arrive as "operation failed" with QEMU's message inside, so the text decides.
The fixtures in the tests are messages that libvirt 9.0 and QEMU 7.2 wrote.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from kvorum import errors

# libvirt's virErrorNumber; written out so that this module needs no libvirt.
NO_DOMAIN = 42
OPERATION_INVALID = 55
OPERATION_TIMEOUT = 68
OPERATION_ABORTED = 78
MIGRATE_UNSAFE = 81
MIGRATE_FINISH_OK = 93

_Maker = Callable[..., errors.KvorumError]


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    make: _Maker
    # May name the pattern's groups.
    message: str
    remedy: str


def _rule(pattern: str, make: _Maker, message: str, remedy: str) -> _Rule:
    return _Rule(re.compile(pattern, re.DOTALL), make, message, remedy)


_BY_TEXT = (
    _rule(
        r"Failed to get (?:shared )?\"(?:write|consistent read)\" lock|Is another process using the image",
        errors.Locked,
        "a disk image is in use by another process",
        "stop the guest that uses it; it may run on another node",
    ),
    _rule(
        r"(?:Cannot access storage file|Could not open|Could not access file:?) '(?P<path>[^']+)'.*No such file",
        errors.NotFound,
        "there is no disk image {path}",
        "see that its storage is mounted on this node, or remove the disk from the config",
    ),
    _rule(
        r"Cannot get interface MTU on '(?P<bridge>[^']+)': No such device",
        errors.NotFound,
        "there is no bridge {bridge} on this node",
        "make the bridge, or change the network card's bridge= in the config",
    ),
    _rule(
        r"Cannot allocate memory|cannot set up guest memory",
        errors.Refused,
        "this node has not enough memory for the guest",
        "stop or move other guests, or lower 'memory' in the config",
    ),
    _rule(
        r"No space left on device",
        errors.Refused,
        "no space is left on a storage of this node",
        "free some space",
    ),
    _rule(
        r"already (?:exists with uuid|active|defined with uuid)",
        errors.Refused,
        "a domain with this guest's name or uuid exists already",
        "stop the guest first; if another guest has the same 'smbios1: uuid', change one of them",
    ),
    _rule(
        r"Unable to find an unused port in range 'migration'",
        errors.QuotaExceeded,
        "all migration ports of the target are in use",
        "wait until other migrations have ended",
    ),
    _rule(
        r"(?:Could not access KVM kernel module|failed to initialize kvm|Failed to set MSR|failed to set MSR)",
        errors.Refused,
        "KVM does not work on this node",
        "set the node's accelerator to tcg, or enable virtualization in the firmware",
    ),
    _rule(
        r"Failed to connect socket to '(?P<path>[^']+)'",
        errors.Unreachable,
        "libvirt does not answer at {path}",
        "start libvirtd on this node",
    ),
    _rule(
        r"TLS handshake failed|[Cc]ertificate|TLS channel.*Not a migration stream",
        errors.Refused,
        "the nodes do not accept each other's certificates for the migration",
        "see that /var/lib/kvorum/pki/qemu is complete on both nodes",
    ),
)


def translate(code: int, message: str, *, subject: str) -> errors.KvorumError:
    """`subject` begins the message: `guest 100`. libvirt's own words are kept in the details."""
    said = " ".join(message.split())
    details = {"libvirt": said}
    for rule in _BY_TEXT:
        match = rule.pattern.search(message)
        if match is not None:
            text = rule.message.format(**match.groupdict())
            return rule.make(f"{subject}: {text}", remedy=rule.remedy, details=details)
    match code:
        case 42:
            return errors.NotFound(f"{subject}: does not run here", details=details)
        case 78:
            return errors.Cancelled(f"{subject}: cancelled", details=details)
        case 68:
            return errors.Locked(
                f"{subject}: something else works on it", remedy="wait, then try again", details=details
            )
        case 81:
            return errors.Refused(
                f"{subject}: {said}", remedy="put its disks on a shared storage with cache=none", details=details
            )
        case 55:
            return errors.Refused(f"{subject}: {said}", details=details)
    return errors.CommandFailed(f"{subject}: {said}", remedy="see /var/log/libvirt/qemu on this node", details=details)
