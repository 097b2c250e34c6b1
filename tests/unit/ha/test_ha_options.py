"""What datacenter.cfg says about HA."""

import pytest

from ha.load import Mode
from ha.options import Options, ShutdownPolicy, parse_options


def test_nothing_said_is_proxmox_ves_default() -> None:
    options = parse_options("keyboard: de\n")
    assert options == Options()
    assert (options.shutdown_policy, options.policy.mode, options.budget.is_enabled) == ("conditional", "basic", False)


def test_proxmox_ves_words_are_read() -> None:
    text = (
        "ha: shutdown_policy=migrate,shutdown_deadline=120\n"
        "crs: ha=static,ha-rebalance-on-start=1,ha-auto-rebalance=1,ha-auto-rebalance-threshold=20\n"
    )
    options = parse_options(text)
    assert (options.shutdown_policy, options.shutdown_deadline_s) == (ShutdownPolicy.migrate, 120)
    assert (options.policy.mode, options.rebalances_on_start) == (Mode.static, True)
    assert (options.budget.is_enabled, options.budget.threshold) == (True, 0.2)
    assert options.problems == ()


@pytest.mark.parametrize(
    "text",
    [
        "ha: shutdown_policy=explode\n",
        "ha: shutdown_deadline=soon\n",
        "crs: ha=psychic\n",
        "crs: ha-auto-rebalance=maybe\n",
        "ha: =\n",
    ],
)
def test_what_cannot_be_read_counts_as_not_said_and_is_named(text: str) -> None:
    options = parse_options(text)
    assert len(options.problems) == 1
    assert (options.shutdown_policy, options.policy.mode, options.budget.is_enabled) == ("conditional", "basic", False)
