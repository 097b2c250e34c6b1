"""`ha/settings.cfg`: what it may say, and what is refused."""

import pytest

from ha.leases import FAST, NORMAL, PATIENT, named
from ha.settings import parse_settings, render_settings
from kvorum.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("", NORMAL),
        ("# nothing chosen\n\n", NORMAL),
        ("profile: fast\n", FAST),
        ("profile:patient", PATIENT),
        ("later: something\nprofile: fast\nwatchdog: 10\n", named("fast", 10.0)),
        ("watchdog: 12\n", named("normal", 12.0)),
    ],
)
def test_a_choice_is_read(text: str, profile: object) -> None:
    assert parse_settings(text).profile == profile


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("profile: swift\n", 1),
        ("\nprofile\n", 2),
        ("watchdog: ten\n", 1),
        ("watchdog: 0\n", 1),
        ("watchdog: -5\n", 1),
        ("watchdog: 1000\n", 1),
        ("profile: normal\nwatchdog: 5\n", 0),
        ("profile: fast\nwatchdog: 61\n", 0),
    ],
)
def test_what_does_not_exist_or_is_not_safe_is_refused_and_says_where(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings(text)
    assert refused.value.details.get("line", "0") == str(line)
    assert refused.value.details["path"] == "ha/settings.cfg"


def test_another_choice_keeps_what_is_not_known_here() -> None:
    text = render_settings("# mine\nlater: 3\nprofile: fast\nwatchdog: 9\n", profile="patient")
    assert text == "# mine\nlater: 3\nprofile: patient\n"
    assert render_settings(text, profile="fast", watchdog_s=20).endswith("profile: fast\nwatchdog: 20\n")
    assert parse_settings(text).profile == PATIENT
