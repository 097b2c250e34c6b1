"""HA's rules, `ha/rules.cfg`: read, and changed by one rule at a time. A change that contradicts other rules is refused.

What a rule means is for the `ha` room; the edits lose nothing of the file.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from agent.inventory import GuestStore
from ha.rules import (
    RULES_CFG,
    Compiled,
    Conflict,
    NodeAffinity,
    Rule,
    Rules,
    StartOrder,
    compile_rules,
    named,
    parse_rules,
)
from kvorum.errors import AlreadyExists, InvalidInput, NotFound, Refused
from kvorum.ids import NodeName, Sid

from . import files
from .files import FileStore

Edit = Callable[[Rules], Rules]


@dataclass(frozen=True, slots=True)
class RulesFile:
    """`version` 0 when there is none yet."""

    rules: Rules
    version: int

    @classmethod
    async def load(cls, store: GuestStore, *, linearizable: bool = False) -> "RulesFile":
        """Raises ConfigError for a text that is not made of sections."""
        content, version = await files.load(store, RULES_CFG, linearizable=linearizable)
        return cls(parse_rules(content), version)


async def change(
    store: FileStore, edit: Edit, nodes: Collection[NodeName], *, reason: str, is_dry_run: bool = False
) -> Rules:
    """Apply `edit`, again on the new file when somebody else was faster. Raises Refused for a new contradiction, and what
    `edit` raises."""

    def apply(content: bytes) -> tuple[Rules, bytes]:
        before = parse_rules(content)
        rules = edit(before)
        if new := new_conflicts(before, rules, nodes):
            raise contradiction(rules, new[0])
        return rules, content if rules.render() == before.render() else rules.render().encode()

    rules, _ = await files.change(store, RULES_CFG, apply, reason=reason, is_dry_run=is_dry_run)
    return rules


def added(rule: Rule) -> Edit:
    """Raises AlreadyExists when it is applied to rules that have one of that name."""

    def edit(rules: Rules) -> Rules:
        if rules.text.find(rule.id) is not None:
            raise AlreadyExists(f"there is a rule {rule.id} already", remedy=f"change it: kvorum ha rule set {rule.id}")
        return _with(rules, rule)

    return edit


def replaced(rule: Rule) -> Edit:
    def edit(rules: Rules) -> Rules:
        require(rules, rule.id)
        return _with(rules, rule)

    return edit


def removed(rule_id: str) -> Edit:
    def edit(rules: Rules) -> Rules:
        if rules.text.find(rule_id) is None:
            require(rules, rule_id)
        return rules.without(rule_id)

    return edit


def _with(rules: Rules, rule: Rule) -> Rules:
    """Raises InvalidInput when it could not be read again."""
    changed = rules.with_rule(rule)
    if changed.find(rule.id) is None:
        known = set(rules.problems)
        problem = next(one for one in changed.problems if one not in known)
        raise InvalidInput(problem.message, field=problem.key, remedy=problem.remedy)
    return changed


def require(rules: Rules, rule_id: str) -> Rule:
    """Raises NotFound."""
    rule = rules.find(rule_id)
    if rule is None:
        raise NotFound(f"there is no rule {rule_id}", remedy="'kvorum ha rule list' shows all")
    return rule


def compiled(rules: Rules, nodes: Collection[NodeName]) -> Compiled:
    """As if every resource that a rule names were under HA: so a contradiction is seen before it is one."""
    return compile_rules(rules, _named(rules), nodes)


def new_conflicts(before: Rules, after: Rules, nodes: Collection[NodeName]) -> list[Conflict]:
    known = {frozenset(conflict.rules) for conflict in compiled(before, nodes).conflicts}
    return [conflict for conflict in compiled(after, nodes).conflicts if frozenset(conflict.rules) not in known]


def contradiction(rules: Rules, conflict: Conflict) -> Refused:
    who = ", ".join(conflict.resources)
    names = " and ".join(_told(rules, name) for name in conflict.rules)
    remedy = "change or remove one of them, or make this one a wish (--soft)"
    if conflict.is_cycle:
        message = f"these rules make a cycle, {conflict.circle}: {names}"
        remedy = "change or remove one of them"
    elif len(conflict.rules) == 1:
        message = f"{names} cannot be kept by {who}: it asks for more nodes than there are"
    else:
        message = f"these rules cannot be kept all at once over {who}: {names}"
    return Refused(
        message,
        remedy=remedy,
        details={"rules": ",".join(conflict.rules)},
    )


def _told(rules: Rules, rule_id: str) -> str:
    rule = rules.find(rule_id)
    if rule is None:
        return rule_id
    if isinstance(rule, StartOrder):
        return f"{rule_id} ({', '.join(sorted(rule.resources))} after {', '.join(sorted(rule.after))})"
    if isinstance(rule, NodeAffinity):
        return f"{rule_id} ({', '.join(sorted(rule.resources))} only on {', '.join(sorted(rule.nodes))})"
    how = "together" if rule.affinity == "positive" else "apart"
    return f"{rule_id} ({', '.join(sorted(rule.resources))} {how})"


def _named(rules: Rules) -> frozenset[Sid]:
    return frozenset(sid for rule in rules for sid in named(rule))
