"""Orders of a node whose name another machine has by now. Pure.

A node is its member's UUID; the name is an attribute, free again once the node was removed. Who joins under it has a lease of
its own, which counts incarnations from the beginning, and knows nothing of what its namesake runs. So an order whose member has
lost its name goes by the UUID from then on: no member is called that, and it is a node that was removed, with its time to end
(`View.leaving_s`).
"""

from dataclasses import replace

import msgspec

from ha.status import Service
from ha.view import View
from kvorum.ids import NodeName


def told_apart(view: View) -> View:
    services = view.status.service_status
    found = {sid: _renamed(service) for sid, service in services.items() if _is_strangers(view, service)}
    if not found:
        return view
    return replace(view, status=msgspec.structs.replace(view.status, service_status={**services, **found}))


def _is_strangers(view: View, service: Service) -> bool:
    member = view.nodes.get(NodeName(service.node))
    return member is not None and service.node_uid not in ("", member.uid)


def _renamed(service: Service) -> Service:
    return msgspec.structs.replace(
        service, node=service.node_uid, cause=f"{service.node} was removed, and another machine has its name now"
    )
