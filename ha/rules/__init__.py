"""Where guests may run and would rather run: `ha/rules.cfg`, and what follows from it for each resource. Pure.

`text` reads and writes the file, `feasible` asks whether strict rules can be kept all at once, `terms` turns the rules into what
one resource may, must not and prefers. What must stay out: where guests are, which nodes live, how full they are. That is a
situation, and `ha.placement` weighs it.

Two promises. A rule never goes away in silence: one that contradicts earlier ones is named together with the smallest set that
it contradicts, and counts as a wish of great weight until somebody mends it; all others stay as they are. And a section that
cannot be read is named and left out, the rest of the file counts.
"""

from .terms import Compiled, Conflict, NodeWish, RuleCache, SoftAffinity, Terms, compile_rules
from .text import (
    RULES_CFG,
    Affinity,
    NodeAffinity,
    Problem,
    ResourceAffinity,
    Rule,
    Rules,
    parse_rules,
)

__all__ = [
    "RULES_CFG",
    "Affinity",
    "Compiled",
    "Conflict",
    "NodeAffinity",
    "NodeWish",
    "Problem",
    "ResourceAffinity",
    "Rule",
    "RuleCache",
    "Rules",
    "SoftAffinity",
    "Terms",
    "compile_rules",
    "parse_rules",
]
