"""The HA manager's decisions: `decide(view, now) -> Decision`. Pure.

An entry of `service_status` is an order: this node, in this life of it (its lease's incarnation), shall start, stop or
move this guest; `uid` names the order. One rule carries the safety, and `release` is all of it: a new order goes to
another node only after the node before has released the guest. Where the config file lies is a second condition, never
the first: a late move by a deposed manager does not make an owner.

`round` goes through commands and resources, `states` has a function for each state, `moving` those in which a guest
moves on purpose, `case` what they ask and how entries are made, `placing` where everything is. What must stay out:
performing anything.
"""

from .decision import Action, Decision, FenceLease, ForgetCommand, MoveConfig, RequestStopped
from .quiet import Quiet
from .release import has_released
from .round import decide

__all__ = [
    "Action",
    "Decision",
    "FenceLease",
    "ForgetCommand",
    "MoveConfig",
    "Quiet",
    "RequestStopped",
    "decide",
    "has_released",
]
