"""How full the store is, in numbers and in words: pure."""

from dataclasses import dataclass

from clusterfs.settings import size_text
from clusterfs.state import State

WARN_AT = 0.80
# A warning that was given is given again only after the use has fallen below this.
REARM_BELOW = 0.75


@dataclass(frozen=True, slots=True)
class Use:
    """`name` as in the settings. What is_trimmed forgets its oldest when it is full, so nobody is warned."""

    name: str
    used: int
    limit: int
    is_trimmed: bool = False

    @property
    def share(self) -> float:
        return self.used / self.limit if self.limit else 1.0


def uses(state: State) -> tuple[Use, ...]:
    settings = state.settings
    return (
        Use("max_tree_bytes", state.root.size, settings.max_tree_bytes),
        Use("max_entries", state.root.count, settings.max_entries),
        Use("history_bytes", state.history.cost_bytes, settings.history_bytes, is_trimmed=True),
        Use("history_changes", len(state.history), settings.history_changes, is_trimmed=True),
    )


def warnings(state: State) -> tuple[str, ...]:
    """What is at 80 % or more of its limit, as sentences."""
    return tuple(_sentence(use) for use in uses(state) if not use.is_trimmed and use.share >= WARN_AT)


def notices(told: frozenset[str], state: State) -> tuple[frozenset[str], tuple[str, ...]]:
    """What has been told by now, and what is to be said for the first time since it was last below 75 %."""
    limited = [use for use in uses(state) if not use.is_trimmed]
    kept = told - {use.name for use in limited if use.share < REARM_BELOW}
    fresh = [use for use in limited if use.share >= WARN_AT and use.name not in kept]
    return kept | {use.name for use in fresh}, tuple(_sentence(use) for use in fresh)


def _sentence(use: Use) -> str:
    percent = int(use.share * 100)
    if use.name == "max_entries":
        return f"the store holds {use.used} entries, {percent} % of its limit of {use.limit}"
    return f"the store holds {use.used} bytes, {percent} % of its limit of {size_text(use.limit)}"
