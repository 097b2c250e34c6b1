"""The text of `ha/rules.cfg`, in Proxmox VE's section format.

    node-affinity: near-the-san
        resources vm:100,ct:101
        nodes n1:2,n2
        strict 1

    resource-affinity: databases-apart
        resources vm:200,vm:201
        affinity negative

    start-order: web-after-db
        resources vm:101,ct:102
        after vm:100
        delay 20

`disable` (alone on its line) and `comment` may stand in all. A node's priority is 0 unless given, the higher the better.

The kind start-order is ours: its `resources` start once all of `after` have run for `delay` seconds (0 unless given), and stop
before them. `deadline` is how long they wait at most. Proxmox VE's tools skip a section of a kind that they do not know.

Two more keys are ours. `weight` (1 to 1000, 100 unless given) says how much a wish weighs against another. `strict 0` in a
resource-affinity makes a wish of it. Proxmox VE's tools skip a key that they do not know, with a warning, and take the rule
as strict, which is the careful reading; when they write the file, such keys are gone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kvorum.config.properties import parse_int, render_list, split_list
from kvorum.config.sections import Section, SectionConfig
from kvorum.errors import ConfigError, InvalidInput
from kvorum.ids import NodeName, Sid, parse_node_name, parse_sid

RULES_CFG = "ha/rules.cfg"
DEFAULT_WEIGHT = 100
MAX_WEIGHT = 1000
MAX_PRIORITY = 1000
MAX_DELAY_S = 3600
MAX_DEADLINE_S = 86_400
# How much longer than the delay a guest waits at most by a start-order that is not strict, unless the rule says.
DEFAULT_PATIENCE_S = 300


class Affinity(StrEnum):
    positive = "positive"
    negative = "negative"


@dataclass(frozen=True, slots=True)
class NodeAffinity:
    """These resources run on these nodes: only there if strict, else there if possible, on the highest priority first."""

    id: str
    resources: frozenset[Sid]
    nodes: Mapping[NodeName, int]
    is_strict: bool = False
    is_enabled: bool = True
    weight: int = DEFAULT_WEIGHT
    comment: str = ""


@dataclass(frozen=True, slots=True)
class ResourceAffinity:
    """These resources run on one node (positive), or each on another (negative)."""

    id: str
    resources: frozenset[Sid]
    affinity: Affinity
    is_strict: bool = True
    is_enabled: bool = True
    weight: int = DEFAULT_WEIGHT
    comment: str = ""


@dataclass(frozen=True, slots=True)
class StartOrder:
    """These resources start once those of `after` have run for `delay_s`, and stop before them.

    Not strict: they wait only for what is on its way by itself, and never longer than the deadline. Strict: whatever
    keeps the others from running, and without an end unless a deadline is given.
    """

    id: str
    resources: frozenset[Sid]
    after: frozenset[Sid]
    delay_s: int = 0
    # None: as the strength has it.
    deadline_s: int | None = None
    is_strict: bool = False
    is_enabled: bool = True
    comment: str = ""

    @property
    def patience_s(self) -> int:
        """How long they wait at most; 0: without an end."""
        if self.deadline_s is not None:
            return self.deadline_s
        return 0 if self.is_strict else self.delay_s + DEFAULT_PATIENCE_S


# Those that say where guests run, and all.
PlaceRule = NodeAffinity | ResourceAffinity
Rule = PlaceRule | StartOrder


@dataclass(frozen=True, slots=True)
class Problem:
    """A section that cannot be read, and what to do about it."""

    section: str
    key: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.section}: {self.message}" + (f" ({self.remedy})" if self.remedy else "")


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of the file in its order. A section in `problems` is none of them, but stays in the text."""

    rules: tuple[Rule, ...] = ()
    problems: tuple[Problem, ...] = ()
    text: SectionConfig = field(default_factory=SectionConfig)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def find(self, rule_id: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.id == rule_id), None)

    def of(self, sid: Sid) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if sid in named(rule))

    def with_rule(self, rule: Rule) -> "Rules":
        """The same with this rule, in the place of the one with its id or at the end. Comments and foreign keys stay.

        Raises InvalidInput for what the format cannot hold.
        """
        kind = _KINDS[type(rule)]
        old = self.text.find(rule.id)
        if old is not None and old.type != kind:
            raise InvalidInput(
                f"'{rule.id}' is a {old.type} rule", field="id", remedy="take another name, or remove it first"
            )
        section = old if old is not None else Section.of(kind, rule.id, {})
        entries = _entries(rule)
        section = section.without(*(key for key in _OPTIONAL if key not in entries))
        for key, value in entries.items():
            section = section.set(key, value)
        return parse_rules(self.text.with_section(section).render())

    def without(self, rule_id: str) -> "Rules":
        """The same without this rule; none there is no error."""
        return parse_rules(self.text.without(rule_id).render())

    def render(self) -> str:
        """What was parsed unchanged renders as it was."""
        return self.text.render()


_KINDS: Mapping[type[Rule], str] = {
    NodeAffinity: "node-affinity",
    ResourceAffinity: "resource-affinity",
    StartOrder: "start-order",
}
_OPTIONAL = ("strict", "disable", "weight", "comment", "delay", "deadline")


def named(rule: Rule) -> frozenset[Sid]:
    """All resources that a rule speaks of."""
    return rule.resources | rule.after if isinstance(rule, StartOrder) else rule.resources


def parse_rules(text: str | bytes, path: str = RULES_CFG) -> Rules:
    """Raises ConfigError if the text is not made of sections; a section that is wrong in itself is a problem, no error."""
    config = SectionConfig.parse(text, path)
    rules: list[Rule] = []
    problems: list[Problem] = []
    for section in config:
        name = f"{section.type} '{section.id}'"
        try:
            if any(rule.id == section.id for rule in rules):
                raise ConfigError("another rule has this name", field="id", remedy="give one of them another name")
            rules.append(_rule(section))
        except InvalidInput as error:
            problems.append(Problem(name, error.field, error.message, error.remedy or "mend the line"))
    return Rules(tuple(rules), tuple(problems), config)


def _rule(section: Section) -> Rule:
    match section.type:
        case "node-affinity":
            return NodeAffinity(
                section.id,
                _resources(section),
                _nodes(section),
                section.get_bool("strict"),
                _is_enabled(section),
                _weight(section),
                section.get("comment", ""),
            )
        case "resource-affinity":
            return ResourceAffinity(
                section.id,
                _resources(section),
                _affinity(section),
                section.get_bool("strict", default=True),
                _is_enabled(section),
                _weight(section),
                section.get("comment", ""),
            )
        case "start-order":
            return _start_order(section)
        case unknown:
            raise ConfigError(
                f"there are no {unknown} rules", remedy="use node-affinity, resource-affinity or start-order"
            )


def _start_order(section: Section) -> StartOrder:
    resources, after = _resources(section), _resources(section, "after")
    if both := sorted(resources & after):
        raise ConfigError(
            f"{', '.join(both)} would wait for itself", field="after", remedy="name it in one of the two lists"
        )
    delay_s = _seconds(section, "delay", 0, MAX_DELAY_S) or 0
    deadline_s = _seconds(section, "deadline", 1, MAX_DEADLINE_S)
    if deadline_s is not None and deadline_s <= delay_s:
        raise ConfigError(
            f"a deadline of {deadline_s} s ends before the delay of {delay_s} s",
            field="deadline",
            remedy="give a longer deadline, or none",
        )
    return StartOrder(
        section.id,
        resources,
        after,
        delay_s,
        deadline_s,
        section.get_bool("strict"),
        _is_enabled(section),
        section.get("comment", ""),
    )


def _seconds(section: Section, key: str, minimum: int, maximum: int) -> int | None:
    text = section.get(key)
    return None if text is None else parse_int(text, field=key, minimum=minimum, maximum=maximum)


def _resources(section: Section, key: str = "resources") -> frozenset[Sid]:
    section.require(key)
    for sid in section.get_list(key):
        parse_sid(sid, field=key)
    return frozenset(Sid(sid) for sid in section.get_list(key))


def _nodes(section: Section) -> Mapping[NodeName, int]:
    nodes: dict[NodeName, int] = {}
    for item in split_list(section.require("nodes")):
        name, colon, priority = item.partition(":")
        node = parse_node_name(name, field="nodes")
        if node in nodes:
            raise ConfigError(f"{node} stands there twice", field="nodes", remedy="name each node once")
        nodes[node] = parse_int(priority, field="nodes", minimum=0, maximum=MAX_PRIORITY) if colon else 0
    return nodes


def _affinity(section: Section) -> Affinity:
    word = section.require("affinity")
    if word not in Affinity.__members__:
        raise ConfigError(f"{word!r} is no affinity", field="affinity", remedy="write positive or negative")
    return Affinity(word)


def _weight(section: Section) -> int:
    text = section.get("weight")
    return DEFAULT_WEIGHT if text is None else parse_int(text, field="weight", minimum=1, maximum=MAX_WEIGHT)


def _is_enabled(section: Section) -> bool:
    """Proxmox VE takes the key for off whatever its value; a `disable 0` is refused, as it does not do what it seems to."""
    if "disable" not in section:
        return True
    if not section.get_bool("disable"):
        raise ConfigError("'disable 0' turns a rule off", field="disable", remedy="remove the line to turn it on")
    return False


def _entries(rule: Rule) -> dict[str, str]:
    """Keys to values as they are written; what is as by default is left out."""
    entries = {"resources": render_list(sorted(rule.resources))}
    match rule:
        case NodeAffinity():
            ranked = sorted(rule.nodes.items())
            entries["nodes"] = render_list(f"{node}:{priority}" if priority else node for node, priority in ranked)
            if rule.is_strict:
                entries["strict"] = "1"
        case ResourceAffinity():
            entries["affinity"] = rule.affinity
            if not rule.is_strict:
                entries["strict"] = "0"
        case StartOrder():
            entries["after"] = render_list(sorted(rule.after))
            if rule.delay_s:
                entries["delay"] = str(rule.delay_s)
            if rule.deadline_s is not None:
                entries["deadline"] = str(rule.deadline_s)
            if rule.is_strict:
                entries["strict"] = "1"
    if not rule.is_enabled:
        entries["disable"] = ""
    if not isinstance(rule, StartOrder) and rule.weight != DEFAULT_WEIGHT:
        entries["weight"] = str(rule.weight)
    if rule.comment:
        entries["comment"] = rule.comment
    return entries
