"""Which of systemd's jobs mean that the host goes down."""

import pytest

from ha.shutdown import parse_jobs


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", ""),
        ("No jobs running.\n", ""),
        ("1201 kvorum-ha.service restart running\n", ""),
        ("1300 reboot.target start waiting\n1301 shutdown.target start waiting\n1302 kvorum-ha.service stop running\n", "reboot"),
        ("1300 poweroff.target start waiting\n1301 shutdown.target start waiting\n", "poweroff"),
        ("1300 halt.target start waiting\n", "poweroff"),
        ("1300 reboot.target stop waiting\n", ""),
    ],
)  # fmt: skip
def test_jobs_of_systemd_mean(text: str, kind: str) -> None:
    assert parse_jobs(text) == kind
