"""The profile of HA, in `ha/settings.cfg`: which there are, and choosing one. What is not safe is refused unwritten."""

from agent.inventory import GuestStore
from ha.leases import PROFILES, Profile, named
from ha.settings import SETTINGS_CFG, parse_settings, render_settings
from kvorum.errors import AlreadyExists, ConfigError, InvalidInput, NotFound, StaleVersion

from .ha_resources import ResourceStore


async def profiles(store: GuestStore) -> tuple[list[Profile], str]:
    """All, the chosen one as the settings have it, and its name; empty when the settings cannot be read."""
    text, _ = await _load(store)
    try:
        chosen = parse_settings(text).profile
    except ConfigError:
        return list(PROFILES.values()), ""
    return [chosen if one.name == chosen.name else one for one in PROFILES.values()], chosen.name


async def choose_profile(store: ResourceStore, name: str, watchdog_s: int = 0) -> Profile:
    """Raises InvalidInput for one that does not exist or would not be safe."""
    if watchdog_s < 0:
        raise InvalidInput(f"a watchdog of {watchdog_s} s is none", field="watchdog_seconds")
    profile = named(name, watchdog_s)
    for _ in range(5):
        text, version = await _load(store)
        content = render_settings(text, profile=name, watchdog_s=watchdog_s)
        if content == text:
            return profile
        try:
            await store.write(
                SETTINGS_CFG,
                content.encode(),
                expected_version=version or None,
                absent=not version,
                parents=True,
                reason=f"HA: profile {name}",
            )
        except (StaleVersion, AlreadyExists):
            continue
        return profile
    raise StaleVersion(f"{SETTINGS_CFG} changes faster than it can be written", remedy="try again")


async def _load(store: GuestStore) -> tuple[str, int]:
    try:
        entry = await store.get(SETTINGS_CFG, linearizable=False)
    except NotFound:
        return "", 0
    return entry.content.decode(errors="replace"), entry.version
