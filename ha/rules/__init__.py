"""Where guests may run and would rather run: `ha/rules.cfg`, and what follows from it for each resource. Pure.

`text` reads and writes the file, `feasible` asks whether strict rules can be kept all at once, `terms` turns the rules into what
one resource may, must not and prefers, `order` into who starts after whom. What must stay out: where guests are, which nodes
live, how full they are. That is a situation, and `ha.placement` weighs it.

Two promises. A rule never goes away in silence: one that contradicts earlier ones is named together with the smallest set that
it contradicts, and counts as a wish of great weight until somebody mends it (an order that closes a cycle counts as none); all
others stay as they are. And a section that
cannot be read is named and left out, the rest of the file counts.
"""

from .order import Orders, Wait
from .terms import Compiled, Conflict, NodeWish, RuleCache, SoftAffinity, Terms, compile_rules
from .text import (
    RULES_CFG,
    Affinity,
    NodeAffinity,
    Problem,
    ResourceAffinity,
    Rule,
    Rules,
    StartOrder,
    named,
    parse_rules,
)

__all__ = [
    "RULES_CFG",
    "Affinity",
    "Compiled",
    "Conflict",
    "NodeAffinity",
    "NodeWish",
    "Orders",
    "Problem",
    "ResourceAffinity",
    "Rule",
    "RuleCache",
    "Rules",
    "SoftAffinity",
    "StartOrder",
    "Terms",
    "Wait",
    "compile_rules",
    "named",
    "parse_rules",
]
