"""Traffic of guests out of what libvirt and the kernel count, in the guest's directions."""

from pathlib import Path

from agent.guests import lxc_cgroups, traffic
from agent.guests.lxc_cgroups import Layout
from agent.guests.traffic import Traffic

# As virConnectGetAllDomainStats gives it for a VM with two disks, an empty drive and one interface.
STATS = {
    "net.count": 1,
    "net.0.name": "vnet3",
    "net.0.rx.bytes": 1500,
    "net.0.rx.pkts": 12,
    "net.0.tx.bytes": 700,
    "block.count": 3,
    "block.0.name": "sda",
    "block.0.rd.bytes": 4096,
    "block.0.wr.bytes": 512,
    "block.1.name": "sdb",
    "block.1.rd.bytes": 4,
    "block.1.wr.bytes": 8,
    "block.2.name": "hdc",
}


def test_a_domains_statistics_are_summed_over_its_devices() -> None:
    assert traffic.of_domain(STATS) == Traffic(1500, 700, 4100, 520)
    assert traffic.of_domain({"net.count": 0}) == Traffic(0, 0, None, None)
    assert traffic.of_domain({}) == traffic.UNKNOWN


def test_cgroups_of_both_versions_are_read(tmp_path: Path) -> None:
    v2 = "8:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=7 dios=0\n253:1 rbytes=1 wbytes=2 rios=1 wios=1\n"
    v1 = "8:0 Read 100\n8:0 Write 20\n8:0 Sync 9\n8:0 Total 120\n8:16 Read 1\n8:16 Write 2\nTotal 123\n"
    assert traffic.of_io_stat(v2) == traffic.of_blkio(v1) == (101, 22)
    assert traffic.of_io_stat("") == (0, 0)
    (tmp_path / "c").mkdir()
    assert lxc_cgroups.io_bytes(Layout({}, tmp_path), "c") is None
    (tmp_path / "c/io.stat").write_text(v2)
    assert lxc_cgroups.io_bytes(Layout({}, tmp_path), "c") == (101, 22)
    (tmp_path / "c/blkio.throttle.io_service_bytes").write_text(v1)
    assert lxc_cgroups.io_bytes(Layout({"blkio": tmp_path}, None), "c") == (101, 22)
    assert lxc_cgroups.io_bytes(Layout({"blkio": tmp_path}, None), "none") is None
    assert lxc_cgroups.io_bytes(Layout(), "c") is None


def test_what_our_end_has_sent_the_guest_has_received(tmp_path: Path) -> None:
    for name, received, sent in (("veth101i0", 7, 100), ("veth101i1", 1, 20), ("veth1011i0", 50, 50), ("eth0", 9, 9)):
        (tmp_path / name / "statistics").mkdir(parents=True)
        (tmp_path / name / "statistics/rx_bytes").write_text(f"{received}\n")
        (tmp_path / name / "statistics/tx_bytes").write_text(f"{sent}\n")
    (tmp_path / "veth101i2").mkdir()
    assert traffic.of_interfaces("veth101i", tmp_path) == (120, 8)
