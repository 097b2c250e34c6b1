"""When a node may not get another name."""

from types import SimpleNamespace
from typing import Any

import pytest

from agent.membership.naming import ordered_to, rename_node
from ha.status import ManagerStatus, Service, State, render
from kvorum.errors import Refused

N1 = "11111111-1111-4111-8111-111111111111"


def service(node: str, **more: Any) -> Service:
    return Service(state=State.started, node=node, uid="u", incarnation=1, **more)


STATUS = ManagerStatus(
    service_status={
        "vm:100": service("n1"),
        "vm:101": service("n2", target="n1"),
        "vm:102": service("n2", maintenance_node="n1"),
        "vm:103": service("n2"),
    },
    node_request={"n2": {"maintenance": 1}},
)


def test_whatever_ha_ties_to_a_name_keeps_it() -> None:
    assert ordered_to("n1", render(STATUS)) == {"vm:100", "vm:101", "vm:102"}
    assert ordered_to("n2", render(STATUS)) == {"vm:101", "vm:102", "vm:103", "its maintenance"}
    assert ordered_to("n3", render(STATUS)) == ordered_to("n1", b"") == set()
    assert ordered_to("n3", b"{") != set()


async def test_a_rename_under_ha_is_refused_with_a_reason_and_a_remedy() -> None:
    """Also when the guest's configuration is not in the node's directory (yet)."""

    async def refresh() -> Any:
        member = SimpleNamespace(name="n1", uid=N1)
        named = {"n1": member}.get
        return SimpleNamespace(is_quorate=True, is_ready=True, by_name=named, missing=(), superseded_by=0, failure="")

    async def read(path: str) -> Any:
        return SimpleNamespace(content=render(STATUS)) if path == "ha/manager_status" else None

    async def guests_of(_node: str) -> list[str]:
        return []

    core: Any = SimpleNamespace(
        require_identity=lambda: None,
        membership=SimpleNamespace(refresh=refresh),
        clusterfs=SimpleNamespace(read=read),
        guests_of=guests_of,
    )
    with pytest.raises(Refused, match="vm:100, vm:101, vm:102 on n1") as caught:
        await rename_node(core, name="n1", new_name="rack1", author="root@pam")
    assert "orders name nodes" in caught.value.message
    assert "take them out of HA" in caught.value.remedy
