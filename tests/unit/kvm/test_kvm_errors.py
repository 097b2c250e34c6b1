"""What libvirt 9.0 and QEMU 7.2 said, word for word, and what we make of it."""

import pytest

from agent.guests.libvirt_errors import translate
from kvorum import errors

QEMU = "internal error: process exited while connecting to monitor: 2026-01-01T00:00:00Z qemu-system-x86_64: "
LOCK = (
    QEMU + '-device scsi-hd,bus=scsi0.0: Failed to get "write" lock\nIs another process using the image [/srv/a.raw]?'
)
NO_FILE = "Cannot access storage file '/srv/shared/a.raw': No such file or directory"
MEMORY = QEMU + "cannot set up guest memory 'pc.ram': Cannot allocate memory"


@pytest.mark.parametrize(
    ("code", "message", "kind", "says"),
    [
        (1, LOCK, errors.Locked, "in use by another process"),
        (38, NO_FILE, errors.NotFound, "there is no disk image /srv/shared/a.raw"),
        (38, "Cannot get interface MTU on 'vmbr7': No such device", errors.NotFound, "no bridge vmbr7"),
        (1, MEMORY, errors.Refused, "not enough memory"),
        (55, "operation failed: domain 'kvorum-100' already exists with uuid 0f6f", errors.Refused, "exists already"),
        (1, "Unable to find an unused port in range 'migration' (60000-60001)", errors.QuotaExceeded, "ports"),
        (1, QEMU + "failed to initialize kvm: Invalid argument", errors.Refused, "KVM does not work"),
        (38, "Failed to connect socket to '/run/libvirt/libvirt-sock'", errors.Unreachable, "does not answer"),
        (42, "Domain not found: no domain with matching name 'kvorum-100'", errors.NotFound, "does not run here"),
        (78, "operation aborted: job 'migration out' canceled by client", errors.Cancelled, "cancelled"),
        (68, "Timed out during operation: cannot acquire state change lock", errors.Locked, "works on it"),
        (81, "Unsafe migration: Migration without shared storage is unsafe", errors.Refused, "Unsafe"),
        (1, QEMU + "Not a migration stream: Cannot read from TLS channel", errors.CommandFailed, "TLS channel"),
        (1, "Certificate does not match the hostname n2", errors.Refused, "certificates"),
        (9, "something\n  nobody has seen", errors.CommandFailed, "something nobody has seen"),
    ],
)
def test_the_cause_is_named(code: int, message: str, kind: type[errors.KvorumError], says: str) -> None:
    error = translate(code, message, subject="guest 100")
    assert type(error) is kind
    assert error.message.startswith("guest 100: ")
    assert says in error.message
    assert error.details["libvirt"] == " ".join(message.split())


def test_braces_in_a_message_do_no_harm() -> None:
    assert "{path}" in translate(9, "{path} {0}", subject="guest 100").message
