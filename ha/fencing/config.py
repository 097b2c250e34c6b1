"""`ha/fence.cfg` in Proxmox VE's format: devices, and how each node is connected to them. Pure.

    device  ilo fence_ilo5 ipaddr=10.0.0.1 login=kvorum passwd=secret
    connect ilo node=n1 plug=1
    device  left:1  fence_apc ipaddr=10.0.0.8
    device  left:2  fence_apc ipaddr=10.0.0.9
    connect left:1 node=n1 port=3
    connect left:2 node=n1 port=3

Devices of one name that differ in the number after the colon belong together (two power supplies): a node is off when all of
them are. Different names are different ways, each of them enough. Values with blanks stand in double quotes.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvorum.errors import ConfigError

FENCE_CFG = "ha/fence.cfg"

_AGENT = re.compile(r"fence_[a-z0-9_]{1,40}")
_DEVICE = re.compile(r"([A-Za-z][A-Za-z0-9_-]{0,40})(?::([0-9]{1,3}))?")
# Ours to say: whom to switch off is `connect`'s, what to do is nobody else's.
_RESERVED = frozenset({"action", "option", "node", "nodename"})


@dataclass(frozen=True, slots=True)
class AgentCall:
    """One agent with all of its parameters, as they go to its standard input."""

    agent: str
    # Secrets, too: never printed.
    parameters: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Method:
    """A way to switch a node off: all of its calls have to be confirmed."""

    name: str
    calls: tuple[AgentCall, ...]


@dataclass(frozen=True, slots=True)
class FenceConfig:
    """By node, in the order in which the file names the devices."""

    methods: Mapping[str, tuple[Method, ...]] = field(default_factory=dict)


def parse_fence_config(text: str) -> FenceConfig:
    """Raises ConfigError."""
    devices: dict[str, dict[str, AgentCall]] = {}
    connected: dict[str, dict[str, list[AgentCall]]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ConfigError(f"a quote does not end: {error}", path=FENCE_CFG, line=number) from error
        if not words:
            continue
        if len(words) < 3 or words[0] not in ("device", "connect"):
            raise _wrong("a line is 'device NAME AGENT KEY=VALUE...' or 'connect NAME node=NODE KEY=VALUE...'", number)
        name, unit = _device(words[1], number)
        if words[0] == "device":
            if not _AGENT.fullmatch(words[2]):
                raise _wrong(f"{words[2]!r} is no name of a fence agent", number)
            if unit in devices.setdefault(name, {}):
                raise _wrong(f"the device {words[1]} is there already", number)
            devices[name][unit] = AgentCall(words[2], _parameters(words[3:], number))
        else:
            device = devices.get(name, {}).get(unit)
            if device is None:
                raise _wrong(f"no device {words[1]} stands above this line", number)
            node, call = _connect(device, words[2:], number)
            connected.setdefault(node, {}).setdefault(name, []).append(call)
    methods = {
        node: tuple(Method(name, tuple(ways[name])) for name in devices if name in ways)
        for node, ways in sorted(connected.items())
    }
    return FenceConfig(methods)


def _connect(device: AgentCall, words: Sequence[str], number: int) -> tuple[str, AgentCall]:
    """The node, and the device's agent with what is said of this node on top."""
    key, _, node = words[0].partition("=")
    if key != "node" or not node:
        raise _wrong("'node=NODE' comes first after the device", number)
    return node, AgentCall(device.agent, {**device.parameters, **_parameters(words[1:], number)})


def _device(word: str, number: int) -> tuple[str, str]:
    found = _DEVICE.fullmatch(word)
    if found is None:
        raise _wrong(f"{word!r} is no name of a device", number)
    return found[1], found[2] or ""


def _parameters(words: Sequence[str], number: int) -> dict[str, str]:
    """A word without a value is a switch, as on a command line."""
    parameters: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", key) or key.lower() in _RESERVED:
            raise _wrong(f"{key!r} is no parameter that can stand here", number)
        if any(ord(character) < 32 for character in value):
            raise _wrong(f"the value of {key} holds a control character", number)
        parameters[key] = value if equals else "1"
    return parameters


def _wrong(message: str, number: int) -> ConfigError:
    return ConfigError(message, path=FENCE_CFG, line=number)
