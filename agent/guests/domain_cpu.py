"""The `cpu` key: Proxmox VE's model names and flags in libvirt's words. Pure.

Models are passed to QEMU as they are (`check='none'`): an emulated CPU, or one under an older kernel, lacks features that
libvirt's check would insist on, and QEMU masks those by itself.
"""

import re

from agent.guests.elements import Element, element
from kvorum.config.properties import parse_properties
from kvorum.errors import ConfigError

_V2 = ("cx16", "lahf_lm", "pni", "popcnt", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "aes", "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
# The x86-64 levels are no QEMU models: a plain base and the features of the level.
_LEVELS: dict[str, tuple[str, ...]] = {
    "x86-64-v2": _V2,
    "x86-64-v2-AES": (*_V2, "aes"),
    "x86-64-v3": _V3,
    "x86-64-v4": (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}


def cpu(value: str, *, accel: str, sockets: int, cores: int) -> Element:
    """`host`, `kvm64,flags=+aes;-pcid`, `x86-64-v2-AES`. Without a value: kvm64, or the emulator's own model."""
    properties = parse_properties(value, default_key="cputype", field="cpu")
    model = properties.get("cputype", "kvm64" if accel == "kvm" else "qemu64")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model):
        raise ConfigError(f"{model!r} is no CPU type", field="cpu")
    topology = element("topology", {"sockets": str(sockets), "dies": "1", "cores": str(cores), "threads": "1"})
    flags = _flags(properties.get("flags", ""))
    if model in ("host", "max"):
        # Only KVM can show a guest the host's own CPU; the emulator's closest is all it can emulate.
        mode = "host-passthrough" if accel == "kvm" and model == "host" else "maximum"
        return element("cpu", {"mode": mode, "check": "none"}, topology, *flags)
    levels = [element("feature", {"policy": "require", "name": name}) for name in _LEVELS.get(model, ())]
    base = element("model", {"fallback": "allow"}, text="qemu64" if model in _LEVELS else model)
    attributes = {"mode": "custom", "match": "exact", "check": "none"}
    return element("cpu", attributes, base, topology, *_without_doubles(levels, flags))


def _flags(text: str) -> list[Element]:
    found = []
    for flag in filter(None, re.split(r"[; ]+", text)):
        if not re.fullmatch(r"[+-][A-Za-z0-9._-]+", flag):
            raise ConfigError(f"{flag!r} is no CPU flag", field="cpu", remedy="write +FLAG or -FLAG")
        found.append(element("feature", {"policy": "require" if flag[0] == "+" else "disable", "name": flag[1:]}))
    return found


def _without_doubles(levels: list[Element], flags: list[Element]) -> list[Element]:
    """libvirt refuses a feature that is named twice; what the person wrote counts."""
    written = {flag.get("name") for flag in flags}
    return [level for level in levels if level.get("name") not in written] + flags
