"""Which process belongs to which guarded guest."""

import pytest

from ha.keeper.processes import Guarded, match

GUESTS = {
    "vm:100": Guarded("vm:100", "12345678-aaaa-bbbb-cccc-1234567890ab"),
    "vm:102": Guarded("vm:102"),
    "ct:101": Guarded("ct:101"),
}
HOST = "0::/system.slice/kvorum-agent.service\n"


def _line(*arguments: str) -> bytes:
    return b"".join(argument.encode() + b"\0" for argument in arguments)


@pytest.mark.parametrize(
    ("cmdline", "cgroup", "sid"),
    [
        pytest.param(_line("qemu", "-name", "guest=kvorum-100,debug-threads=on"), HOST, "vm:100", id="by name"),
        pytest.param(_line("qemu", "-name", "debug=1,guest=kvorum-102"), HOST, "vm:102", id="name in the middle"),
        pytest.param(_line("qemu", "-uuid", "12345678-AAAA-bbbb-cccc-1234567890ab"), HOST, "vm:100", id="by uuid"),
        pytest.param(_line("qemu", "-name", "guest=kvorum-1000"), HOST, "", id="a longer number is another guest"),
        pytest.param(_line("qemu", "-name", "guest=kvorum-10"), HOST, "", id="a shorter number is another guest"),
        pytest.param(_line("qemu", "-name", "guest=kvorum-103"), HOST, "", id="not guarded"),
        pytest.param(_line("qemu", "-uuid", "00000000-aaaa-bbbb-cccc-1234567890ab"), HOST, "", id="another uuid"),
        pytest.param(_line("qemu", "-uuid"), HOST, "", id="an option without its value"),
        pytest.param(_line("qemu", "-uuid", ""), HOST, "", id="an empty uuid is nobody's"),
        pytest.param(_line("grep", "guest=kvorum-100"), HOST, "", id="only as an argument's text"),
        pytest.param(_line("init"), "0::/kvorum-ct-101/init.scope\n", "ct:101", id="container"),
        pytest.param(_line("sh"), "0::/lxc/kvorum-ct-101-1/user\n", "ct:101", id="container after a name clash"),
        pytest.param(_line("sh"), "1:cpu:/x\n0::/kvorum-ct-101\n", "ct:101", id="one of several hierarchies"),
        pytest.param(_line("sh"), "0::/kvorum-ct-1010\n", "", id="a longer container number"),
        pytest.param(_line("sh"), "0::/kvorum-ct-104\n", "", id="a container that is not guarded"),
        pytest.param(
            _line("qemu", "-name", "guest=kvorum-100"),
            "0::/kvorum-ct-101/x\n",
            "ct:101",
            id="a fake inside a container",
        ),
        pytest.param(
            _line("qemu", "-name", "guest=kvorum-100"),
            "0::/kvorum-ct-104/x\n",
            "",
            id="a fake in an unguarded container",
        ),
        pytest.param(b"", HOST, "", id="a kernel thread"),
        pytest.param(b"\xff\xfe\0-uuid\0\xff\0", HOST, "", id="bytes that are no text"),
    ],
)
def test_a_process_belongs_to(cmdline: bytes, cgroup: str, sid: str) -> None:
    assert match(cmdline, cgroup, GUESTS) == sid
