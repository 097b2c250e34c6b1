"""What a migration writes into the guest's config file, so that everybody who reads the file knows how far it came. Pure.

The lock says that somebody moves the guest. The mark says which paused copy *is* the guest: memory is good for as long as nobody
has run the guest since it was taken, and only the agent whose copy ended for it knows when that begins. So the source's
agent alone sets the mark, when its own copy is gone, and whatever starts the guest anew takes it out first. Where the file
lies says nothing about that: the guest may have run elsewhere and come back.
"""

from kvorum.config import GuestConfig

LOCK = "migrate"
# Key of the mark; its value is the migration's id.
ARRIVED = "migration"


def is_locked(config: GuestConfig) -> bool:
    return config.get("lock") == LOCK


def locked(config: GuestConfig) -> GuestConfig:
    return config.without(ARRIVED).set("lock", LOCK)


def arrived(config: GuestConfig, migration_id: str) -> GuestConfig:
    return config.set(ARRIVED, migration_id)


def is_arrived(config: GuestConfig, migration_id: str) -> bool:
    return config.get(ARRIVED) == migration_id


def released(config: GuestConfig) -> GuestConfig:
    """Nothing moves the guest any more, and no waiting copy is the guest. Locks of others stay."""
    return config.without(ARRIVED, *(["lock"] if is_locked(config) else []))
