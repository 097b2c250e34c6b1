"""What a replica's files say, as values: read once for each version of them, and by all nodes of a simulated cluster together.

The real daemon parses each file once for each of its versions, too (`ha.world.Parsed`). Replicas that have applied the same
changes of files have the same files, so one reading serves them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import cast

from ha.leases import DEFAULT, Profile
from ha.load import Demand
from ha.options import DATACENTER_CFG, Options
from ha.resources import RESOURCES_CFG, Resource
from ha.rules import RULES_CFG, Compiled, RuleCache, Rules
from ha.settings import SETTINGS_CFG
from ha.status import MANAGER_STATUS, LrmStatus, ManagerStatus, lrm_status_path
from ha.view import COMMANDS_DIR, Command, Config, Startup, parse_config_path
from kvorum.ids import NodeName, Sid

from .store import File, State

# What the config file of a guest says that a task holds; a free one says nothing.
LOCK = "lock: "
# Replicas are seldom further behind than this; who is, is read anew.
KEPT = 64
_NO_RESOURCES: Mapping[Sid, Resource] = {}
_NOTHING: frozenset[str] = frozenset()

# A simulation asks for the same few paths over and over.
parse_path = cache(parse_config_path)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """`versions` of the files that daemons write; 0, or left out, for those that are not there."""

    revision: int
    versions: Mapping[str, int]
    status: ManagerStatus
    # None while the file does not parse.
    resources: Mapping[Sid, Resource] | None
    rules: Compiled
    options: Options
    profile: Profile
    commands: tuple[Command, ...]
    configs: Mapping[Sid, Config]
    lrm: Mapping[str, LrmStatus]
    _places: Mapping[str, frozenset[str]]

    def configs_on(self, name: str) -> frozenset[str]:
        return self._places.get(name, _NOTHING)


@dataclass(eq=False)
class Readings:
    """`demands`: what guests may use at most; `startups`: their place among others. Both are in their config files."""

    names: tuple[str, ...]
    demands: Mapping[Sid, Demand] = field(default_factory=dict)
    startups: dict[Sid, Startup] = field(default_factory=dict)
    _kept: dict[int, Reading] = field(default_factory=dict)
    _rules: RuleCache = field(default_factory=RuleCache)

    def of(self, state: State) -> Reading:
        held = self._kept.get(state.revision)
        if held is None:
            held = self._kept[state.revision] = self._read(state)
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return held

    def _read(self, state: State) -> Reading:
        files = state.files
        configs: dict[Sid, Config] = {}
        places: dict[str, set[str]] = {}
        for path, file in files.items():
            if found := parse_path(path):
                sid, node = found
                demand, startup = self.demands.get(sid, Demand()), self.startups.get(sid, Startup())
                configs[sid] = Config(node, file.version, str(file.content).removeprefix(LOCK), demand, startup)
                places.setdefault(node, set()).add(sid)
        status = cast(ManagerStatus, _content(files, MANAGER_STATUS) or ManagerStatus())
        resources = _NO_RESOURCES
        if (held := files.get(RESOURCES_CFG)) is not None:
            resources = cast("Mapping[Sid, Resource]", held.content)
        known = resources if resources is not None else [Sid(sid) for sid in status.service_status]
        rules = cast("Rules | None", _content(files, RULES_CFG)) or Rules()
        paths = [MANAGER_STATUS, RESOURCES_CFG, *map(lrm_status_path, self.names)]
        return Reading(
            revision=state.revision,
            versions={path: files[path].version for path in paths if path in files},
            status=status,
            resources=resources,
            rules=self._rules.compile(rules, frozenset(known), frozenset(map(NodeName, self.names))),
            options=cast(Options, _content(files, DATACENTER_CFG) or Options()),
            profile=cast(Profile, _content(files, SETTINGS_CFG) or DEFAULT),
            commands=_commands(files),
            configs=configs,
            lrm={name: cast(LrmStatus, _content(files, lrm_status_path(name)) or LrmStatus()) for name in self.names},
            _places={name: frozenset(sids) for name, sids in places.items()},
        )


def _content(files: Mapping[str, File], path: str) -> object:
    file = files.get(path)
    return file.content if file is not None else None


def _commands(files: Mapping[str, File]) -> tuple[Command, ...]:
    return tuple(
        Command(path.rpartition("/")[2], file.version, str(file.content))
        for path, file in sorted(files.items())
        if path.startswith(f"{COMMANDS_DIR}/")
    )
