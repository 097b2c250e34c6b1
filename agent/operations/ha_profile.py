"""The profile of HA, in `ha/settings.cfg`: which there are, and choosing one. What is not safe is refused unwritten."""

from agent.inventory import GuestStore
from ha.leases import PROFILES, Profile, named
from ha.settings import SETTINGS_CFG, parse_settings, render_settings
from kvorum.errors import ConfigError, InvalidInput

from . import files
from .files import FileStore


async def profiles(store: GuestStore) -> tuple[list[Profile], str]:
    """All, the chosen one as the settings have it, and its name; empty when the settings cannot be read."""
    content, _ = await files.load(store, SETTINGS_CFG)
    try:
        chosen = parse_settings(content.decode(errors="replace")).profile
    except ConfigError:
        return list(PROFILES.values()), ""
    return [chosen if one.name == chosen.name else one for one in PROFILES.values()], chosen.name


async def choose_profile(store: FileStore, name: str, watchdog_s: int = 0) -> Profile:
    """Raises InvalidInput for one that does not exist or would not be safe."""
    if watchdog_s < 0:
        raise InvalidInput(f"a watchdog of {watchdog_s} s is none", field="watchdog_seconds")
    profile = named(name, watchdog_s)

    def apply(content: bytes) -> tuple[None, bytes]:
        text = content.decode(errors="replace")
        after = render_settings(text, profile=name, watchdog_s=watchdog_s)
        return None, content if after == text else after.encode()

    await files.change(store, SETTINGS_CFG, apply, reason=f"HA: profile {name}")
    return profile
