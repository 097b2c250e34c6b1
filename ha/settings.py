"""`ha/settings.cfg`: what an administrator chooses for HA as a whole, in `key: value` lines. Pure.

A file of its own, because Proxmox VE's `datacenter.cfg` has a closed list of keys, and its tools complain about others. Keys
that are not known here are left alone: a newer node may know them.
"""

from dataclasses import dataclass

from kvorum.errors import ConfigError, InvalidInput

from .leases import DEFAULT, Profile, named

SETTINGS_CFG = "ha/settings.cfg"


@dataclass(frozen=True, slots=True)
class Settings:
    profile: Profile = DEFAULT


def parse_settings(text: str) -> Settings:
    """Raises ConfigError, with the reason and the remedy, for a profile that does not exist or is not safe."""
    name, watchdog_s = DEFAULT.name, 0.0
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        key, colon, value = (part.strip() for part in content.partition(":"))
        if not colon:
            raise ConfigError(f"{content!r} is no 'key: value'", path=SETTINGS_CFG, line=number)
        try:
            if key == "profile":
                name = named(value).name
            elif key == "watchdog":
                watchdog_s = _seconds(value)
        except InvalidInput as error:
            raise ConfigError(error.message, path=SETTINGS_CFG, line=number, remedy=error.remedy) from error
    try:
        return Settings(named(name, watchdog_s))
    except InvalidInput as error:
        raise ConfigError(error.message, path=SETTINGS_CFG, field=error.field, remedy=error.remedy) from error


def render_settings(text: str, *, profile: str, watchdog_s: int = 0) -> str:
    """The file with another choice in it; comments and keys that are not known stay. `watchdog_s` 0: as the profile has it."""
    kept = [
        line
        for line in text.split("\n")
        if line.strip() and line.partition(":")[0].strip() not in ("profile", "watchdog")
    ]
    chosen = [f"profile: {profile}", *([f"watchdog: {watchdog_s}"] if watchdog_s else [])]
    return "\n".join([*kept, *chosen]) + "\n"


def _seconds(value: str) -> float:
    if not value.isascii() or not value.isdigit() or len(value) > 3 or not int(value):
        raise InvalidInput(f"{value!r} is no number of seconds", field="watchdog", remedy="a whole number, such as 10")
    return float(value)
