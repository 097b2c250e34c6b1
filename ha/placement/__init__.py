"""Which node takes a guest, and why: one scorer for start, recovery, balancing, another try and what-if. Pure.

`situation` is what is known, `board` the working copy of it in which a round puts one guest after the other, `choice` the answer.
`choose_node` asks a situation once, `explanation` tells why. Four things are weighed, each only among nodes
that are equal in those before:

1. what may never be: node not ready, tried in vain, forbidden by a strict rule, no room;
2. where those are that it must run with;
3. what is wished: a sum of the weights of the wishes that the node does not fulfil;
4. how full it gets (`ha.load`); then the name.

What must stay out: leases, states, orders. Whether a node is ready is the manager's to say.
"""

from .board import Board, choose_node
from .choice import Choice, Ranked
from .explanation import Explanation, explain
from .situation import NodeFacts, Placed, Policy, Preference, Query, Situation

__all__ = [
    "Board",
    "Choice",
    "Explanation",
    "NodeFacts",
    "Placed",
    "Policy",
    "Preference",
    "Query",
    "Ranked",
    "Situation",
    "choose_node",
    "explain",
]
