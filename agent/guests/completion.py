"""What a new guest's config gets once and keeps: MAC addresses and a uuid. Pure; randomness comes in."""

import random
import uuid

from agent.guests.domain_nics import MAC_PREFIX, model_and_mac
from kvorum.config.guest import GuestConfig
from kvorum.config.properties import parse_properties, render_properties


def complete_config(config: GuestConfig, *, random: random.Random) -> GuestConfig:
    """The config with a MAC address for each network card and a uuid. What is there already stays as it is.

    Nothing here can tell whether an address is taken: of 2^24, ten thousand cards collide rarely, and whoever creates
    guests sees them all. Raises ConfigError for a `net` or `smbios1` that does not parse.
    """
    for number, value in config.numbered("net").items():
        key = f"net{number}"
        model, mac = model_and_mac(value, key=key)
        if not mac:
            options = parse_properties(value, default_key="model", field=key)
            rest = {name: option for name, option in options.items() if name not in ("model", "macaddr", model)}
            config = config.set(key, render_properties({model: _mac(random), **rest}))
    smbios = parse_properties(config.get("smbios1", ""), field="smbios1")
    if "uuid" not in smbios:
        made = uuid.UUID(int=random.getrandbits(128), version=4)
        config = config.set("smbios1", render_properties({"uuid": str(made), **smbios}))
    return config


def _mac(random: random.Random) -> str:
    return ":".join([MAC_PREFIX, *(f"{random.getrandbits(8):02X}" for _ in range(3))])
