import pytest

from agent.tasks import Upid
from kvorum.errors import InvalidInput
from kvorum.ids import NodeName


def test_a_upid_reads_as_in_proxmox_ve() -> None:
    upid = Upid(NodeName("n1"), 0x1A2B, 0x3C4D5E, 0x66AABBCC, "qmstart", "100", "root@pam")
    assert str(upid) == "UPID:n1:00001A2B:003C4D5E:66AABBCC:qmstart:100:root@pam:"


def test_parsing_gives_back_what_was_written() -> None:
    text = "UPID:pve-2:0000ABCD:00FF00FF:65000000:qmigrate:101:root@pam!ci:"
    upid = Upid.parse(text)
    assert (upid.node, upid.type, upid.subject, upid.user) == ("pve-2", "qmigrate", "101", "root@pam!ci")
    assert str(upid) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPID:n1:00001A2B:003C4D5E:66AABBCC:qmstart:100:root@pam",
        "UPID:n1:1A2B:003C4D5E:66AABBCC:qmstart:100:root@pam:",
        "UPID:../n1:00001A2B:003C4D5E:66AABBCC:qmstart:100:root@pam:",
        "UPID:n1:00001A2B:003C4D5E:66AABBCC:qm/../start:100:root@pam:",
        "UPID:n1:00001A2B:003C4D5E:66AABBCC:qmstart:1/0:root@pam:",
        "UPID:n1:00001A2B:003C4D5E:66AABBCC:qmstart:100:root@pam:\n",
        "UPID:n1:00001A2B:003C4D5E:66AABBCC:qmstart:" + "1" * 300 + ":root@pam:",
    ],
)
def test_what_could_not_be_a_upid_or_would_leave_the_directory_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Upid.parse(text)
