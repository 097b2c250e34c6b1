"""Errors survive the wire: class, message, remedy and details are the same on both sides."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from kvorum import errors
from kvorum.rpc import from_rpc_error, to_status

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.KvorumError)]


def raise_over_the_wire(error: errors.KvorumError, socket: Path) -> grpc.RpcError:
    """What a client gets when a service ends a call with this error."""

    def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort_with_status(to_status(error))
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"Fail": grpc.unary_unary_rpc_method_handler(fail)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Errors", handlers),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        with grpc.insecure_channel(f"unix:{socket}") as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Errors/Fail")(b"", timeout=10)
        return caught.value
    finally:
        server.stop(None)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_arrives_as_what_it_was(cls: type[errors.KvorumError], tmp_path: Path) -> None:
    sent = cls("the disk is full", remedy="free some space", details={"path": "/srv"})
    received = from_rpc_error(raise_over_the_wire(sent, tmp_path / "s"))
    assert type(received) is cls
    assert (received.message, received.remedy, received.details) == (sent.message, sent.remedy, sent.details)


def test_no_quorum_names_the_missing_nodes_on_the_other_side(tmp_path: Path) -> None:
    received = from_rpc_error(raise_over_the_wire(errors.NoQuorum(missing=["n2", "n3"]), tmp_path / "s"))
    assert isinstance(received, errors.NoQuorum)
    assert received.missing == ["n2", "n3"]


def test_bad_input_names_its_field_on_the_other_side(tmp_path: Path) -> None:
    sent = errors.InvalidInput("'x' is no guest id", field="vmid")
    received = from_rpc_error(raise_over_the_wire(sent, tmp_path / "s"))
    assert isinstance(received, errors.InvalidInput)
    assert received.field == "vmid"


def test_a_status_of_somebody_else_becomes_the_nearest_error(tmp_path: Path) -> None:
    with grpc.insecure_channel(f"unix:{tmp_path}/nobody") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Errors/Fail")(b"", timeout=5)
    assert type(from_rpc_error(caught.value)) is errors.Unreachable
