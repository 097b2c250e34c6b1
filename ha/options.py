"""What datacenter.cfg says about HA: `ha: shutdown_policy=…` and `crs: ha=…`, in Proxmox VE's words. Pure.

Nothing here is worth stopping for: a value that cannot be read counts as not given, and is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from kvorum.config.guest import GuestConfig
from kvorum.config.properties import parse_bool, parse_int, parse_properties
from kvorum.errors import ConfigError, KvorumError

from .balance import Budget
from .load import Mode
from .placement import Policy

DATACENTER_CFG = "datacenter.cfg"

W = TypeVar("W", bound=StrEnum)


class ShutdownPolicy(StrEnum):
    """What becomes of a node's guests when the node goes down as it should."""

    # They stop and stay with the node.
    freeze = "freeze"
    # They stop and start elsewhere.
    failover = "failover"
    # They move away first.
    migrate = "migrate"
    # A reboot freezes, a poweroff fails over.
    conditional = "conditional"


@dataclass(frozen=True, slots=True)
class Options:
    shutdown_policy: ShutdownPolicy = ShutdownPolicy.conditional
    # How long a node that goes down waits for its guests to move away before they are stopped.
    shutdown_deadline_s: int = 300
    policy: Policy = field(default_factory=Policy)
    rebalances_on_start: bool = False
    budget: Budget = field(default_factory=lambda: Budget(is_enabled=False))
    problems: tuple[str, ...] = ()


def parse_options(text: str) -> Options:
    """Never raises."""
    problems: list[str] = []
    try:
        lines = GuestConfig.parse(text)
    except KvorumError as error:
        return Options(problems=(f"{DATACENTER_CFG}: {error}",))
    ha = _properties(lines.get("ha", ""), "ha", problems)
    crs = _properties(lines.get("crs", ""), "crs", problems)
    reader = _Reader(problems)
    default = Budget()
    return Options(
        shutdown_policy=reader.word(ha, "shutdown_policy", ShutdownPolicy, ShutdownPolicy.conditional),
        shutdown_deadline_s=reader.number(ha, "shutdown_deadline", 300, 0, 86400),
        policy=Policy(
            mode=reader.word(crs, "ha", Mode, Mode.basic),
            memory_limit=reader.number(crs, "memory-limit", 100, 0, 1000) / 100,
            reserve_nodes=reader.number(crs, "reserve-nodes", 0, 0, 32),
        ),
        rebalances_on_start=reader.flag(crs, "ha-rebalance-on-start"),
        budget=Budget(
            is_enabled=reader.flag(crs, "ha-auto-rebalance"),
            threshold=reader.number(crs, "ha-auto-rebalance-threshold", 30, 0, 100) / 100,
            margin=reader.number(crs, "ha-auto-rebalance-margin", 10, 0, 100) / 100,
            hold_s=10.0 * reader.number(crs, "ha-auto-rebalance-hold-duration", 3, 0, 1000),
            cooldown_s=float(reader.number(crs, "ha-auto-rebalance-cooldown", int(default.cooldown_s), 0, 86400)),
            max_moves=reader.number(crs, "ha-auto-rebalance-moves", default.max_moves, 1, 100),
        ),
        problems=tuple(problems),
    )


def _properties(text: str, name: str, problems: list[str]) -> Mapping[str, str]:
    try:
        return parse_properties(text, field=name) if text else {}
    except ConfigError as error:
        problems.append(f"{DATACENTER_CFG}, {name}: {error}")
        return {}


class _Reader:
    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def word(self, found: Mapping[str, str], key: str, kind: type[W], default: W) -> W:
        try:
            return kind(found[key]) if key in found else default
        except ValueError:
            self._problems.append(f"{DATACENTER_CFG}: {key} is {found[key]!r}; it counts as {default}")
            return default

    def number(self, found: Mapping[str, str], key: str, default: int, minimum: int, maximum: int) -> int:
        try:
            return parse_int(found[key], field=key, minimum=minimum, maximum=maximum) if key in found else default
        except ConfigError as error:
            self._problems.append(f"{DATACENTER_CFG}: {key}: {error}; it counts as {default}")
            return default

    def flag(self, found: Mapping[str, str], key: str) -> bool:
        try:
            return parse_bool(found[key], field=key) if key in found else False
        except ConfigError as error:
            self._problems.append(f"{DATACENTER_CFG}: {key}: {error}; it counts as no")
            return False
