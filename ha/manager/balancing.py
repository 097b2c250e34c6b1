"""Evening out the nodes' load, as far as the budget goes: `ha.balance` says what had better be elsewhere, this orders it. Pure.

Only guests that run undisturbed are moved, and nothing while HA is disarmed or about to be.
"""

from collections.abc import Mapping

from ha.balance import History, balance
from ha.resources import Resource
from ha.status import Mode, Service, State
from ha.view import View
from kvorum.ids import Sid

from . import moving
from .case import Case
from .placing import Placing


def even_out(
    view: View, now: float, resources: Mapping[Sid, Resource], placing: Placing, services: Mapping[str, Service]
) -> tuple[dict[str, Service], History]:
    """The entries with moves in them, and what is to be remembered."""
    after = dict(services)
    if not view.options.budget.is_enabled or view.status.disarm is not None:
        return after, History()
    held = {sid for sid, config in view.configs.items() if config.lock}
    movable = [Sid(sid) for sid, one in services.items() if sid not in held and _is_undisturbed(one, placing, now)]
    plan = balance(placing.situation_now(), view.options.budget, now, view.history, movable)
    for move in plan.moves:
        for sid in move.group:
            case = Case(view, resources[sid], now, placing)
            if not case.is_ready(move.source) or not case.is_open(move.target):
                break
        else:
            for sid in move.group:
                case = Case(view, resources[sid], now, placing)
                after[sid] = moving.begin(case, after[sid], moving.MIGRATE, move.target, f"for balance: {move.why}")
                placing.put(sid, after[sid])
    return after, plan.history


def _is_undisturbed(service: Service, placing: Placing, now: float) -> bool:
    return (
        service.state is State.started
        and bool(service.running)
        and not service.cmd
        and placing.mode(service.node) is Mode.active
        and service.move_after <= now
    )
