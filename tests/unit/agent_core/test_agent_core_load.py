"""The load of a node and its guests, as Proxmox VE's tools read it: the columns of 9.0, in their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent import load
from agent.guests.driver import STOPPED, Observed, RunState
from agent.guests.traffic import Traffic
from agent.inventory import GuestFile, GuestKind, Inventory
from agent.load import CpuTimes, GuestLoad, NodeLoad, Pressure
from agent.publishing import PREFIX, Meter, Publisher
from kvorum.errors import NotFound, Unreachable
from kvorum.ids import NodeName, Vmid

GIB = 1 << 30


def test_a_nodes_record_has_two_live_columns_the_time_and_nineteen_more() -> None:
    node = NodeLoad(
        uptime_s=3600,
        load_average=0.25,
        cpus=8,
        cpu=0.125,
        memory_bytes=4 * GIB,
        memory_available_bytes=3 * GIB,
        swap_bytes=GIB,
        swap_free_bytes=GIB,
        root_bytes=100,
        root_used_bytes=40,
        received_bytes=7,
        sent_bytes=8,
        cpu_pressure=Pressure(1.5, 0.0),
        memory_pressure=Pressure(0.0, 0.25),
    )
    record = load.node_record(node, now_s=1_795_327_261)
    assert record == (
        "3600::1795327261:0.25:8:0.125:U:4294967296:1073741824:1073741824:0:100:40:7:8:3221225472:U:1.5:U:U:0:0.25"
    )
    assert len(record.split(":")) == 2 + 1 + 19


def test_a_guests_record_has_four_live_columns_the_time_and_seventeen_more() -> None:
    running = GuestLoad(
        name="web:1 x",
        status="running",
        is_template=False,
        cpus=2,
        memory_bytes=GIB,
        uptime_s=9,
        cpu=0.5,
        memory_host_bytes=123,
        received_bytes=1,
        sent_bytes=2,
        read_bytes=3,
        written_bytes=4,
    )
    record = load.guest_record(running, now_s=5)
    assert record == "9:web_1_x:running:0:5:2:0.5:1073741824:123:U:U:1:2:3:4:123:U:U:U:U:U:U"
    stopped = GuestLoad(name="db", status="stopped", is_template=True, cpus=1, memory_bytes=GIB)
    assert load.guest_record(stopped, now_s=5) == "0:db:stopped:1:5:1:U:1073741824:U:U:U:U:U:U:U:U:U:U:U:U:U:U"
    assert len(record.split(":")) == 4 + 1 + 17


def test_a_storages_record_is_time_total_and_used() -> None:
    assert load.storage_record(10, 4, now_s=5) == "5:10:4"


def test_shares_are_of_the_time_that_passed() -> None:
    before = load.parse_cpu("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3\n")
    assert before == CpuTimes(1000, 700, 100)
    after = load.parse_cpu("cpu  150 0 125 770 105 0 0 50 99 0\n")
    assert load.shares(before, after) == (pytest.approx(125 / 200), pytest.approx(5 / 200))
    assert load.shares(before, before) is None


def test_texts_of_proc_are_read() -> None:
    assert load.parse_memory("MemTotal:  8 kB\nHugePages_Total: 3\nnonsense\n") == {
        "MemTotal": 8192,
        "HugePages_Total": 3,
    }
    dev = "Inter-| x\n face |bytes\n  eth0: 10 0 0 0 0 0 0 0 20 0\n    lo: 5 0 0 0 0 0 0 0 5 0\n  eth1:1 0 0 0 0 0 0 0 2 0\n"
    assert load.parse_network(dev, ["eth0", "eth1"]) == (11, 22)
    some = "some avg10=1.25 avg60=0 avg300=0 total=9\n"
    assert load.parse_pressure(some + "full avg10=0.50 avg60=0\n") == Pressure(1.25, 0.5)
    assert load.parse_pressure(some) == Pressure(1.25, None)


@dataclass
class Entry:
    path: str
    content: bytes
    version: int = 1
    placement: int = 1


@dataclass
class FakeCluster:
    files: dict[str, bytes]
    earlier: Sequence[str] = ()
    said: list[dict[str, bytes]] = field(default_factory=list)

    async def get(self, path: str, *, linearizable: bool = False) -> Entry:
        if path not in self.files:
            raise NotFound(path)
        return Entry(path, self.files[path])

    async def list(self, path: str = "", *, recursive: bool = False, with_content: bool = False) -> list[Entry]:
        return [Entry(name, text) for name, text in self.files.items() if name.startswith(path + "/")]

    async def set_status(self, values: Mapping[str, bytes]) -> None:
        self.said.append(dict(values))

    async def status_keys(self, prefix: str) -> Sequence[str]:
        return [key for key in self.earlier if key.startswith(prefix)]


@dataclass
class FakeDriver:
    running: dict[Vmid, Observed] | None

    async def observe_all(self) -> Mapping[Vmid, Observed]:
        if self.running is None:
            raise Unreachable("no libvirt here")
        return self.running


@dataclass
class CountingDriver(FakeDriver):
    counted: dict[Vmid, Traffic] | None = None

    async def traffic(self) -> Mapping[Vmid, Traffic]:
        if self.counted is None:
            raise Unreachable("the monitor does not answer")
        return self.counted


def proc(directory: Path) -> Path:
    texts = {
        "stat": "cpu  100 0 100 700 100 0 0 0 50 0\n",
        "meminfo": "MemTotal: 4 kB\nMemAvailable: 1 kB\n",
        "net/dev": "eth0: 10 0 0 0 0 0 0 0 20 0\n",
        "uptime": "12.34 1.0\n",
        "loadavg": "0.50 0.1 0.1 1/2 3\n",
        "pressure/io": "some avg10=2.00 avg60=0\nfull avg10=1.00 avg60=0\n",
        "77/stat": "77 (qemu (x) y) S " + " ".join(["0"] * 10) + " 30 20 0 0\n",
        "77/statm": "900 5 1\n",
    }
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def publisher(cluster: FakeCluster, vms: FakeDriver, tmp_path: Path) -> Publisher:
    (tmp_path / "net/eth0/device").mkdir(parents=True)
    (tmp_path / "net/veth0").mkdir()
    drivers: Any = {GuestKind.vm: vms, GuestKind.container: FakeDriver({})}
    meter = Meter(proc=proc(tmp_path / "proc"), net=tmp_path / "net")
    return Publisher(inventory=Inventory(cluster), drivers=drivers, cluster=cluster, meter=meter)


async def test_what_a_node_publishes_and_takes_back(tmp_path: Path) -> None:
    cluster = FakeCluster(
        {
            "nodes/n1/qemu-server/100.conf": b"name: web\ncores: 2\nsockets: 2\nmemory: 1024\n",
            "nodes/n1/lxc/101.conf": b"hostname: db\ncores: 1\ntemplate: 1\n",
            "nodes/n2/lxc/102.conf": b"hostname: elsewhere\n",
            "storage.cfg": f"dir: local\n\tpath {tmp_path}\n\ndir: gone\n\tpath {tmp_path}/none\n\tmkdir 0\n".encode(),
        },
        earlier=("rrd/pve-vm-9.0/555", "tasklist"),
    )
    vms = FakeDriver({Vmid(100): Observed(RunState.running, 77, 5.5)})
    subject = publisher(cluster, vms, tmp_path)
    await subject.publish(NodeName("n1"), now_s=9)
    said = {key.removeprefix(PREFIX): value.decode() for key, value in cluster.said[-1].items()}
    assert said["pve-vm-9.0/555"] == ""
    assert said["pve-vm-9.0/100"].startswith("5:web:running:0:9:4:U:1073741824:")
    assert said["pve-vm-9.0/101"].startswith("0:db:stopped:1:9:1:U:536870912:U:")
    assert said["pve-node-9.0/n1"].startswith("12::9:0.5:")
    assert said["pve-node-9.0/n1"].endswith(":10:20:1024:U:U:2:1:U:U")
    assert said["pve-storage-9.0/n1/local"].startswith("9:")
    assert set(said) == {
        "pve-vm-9.0/555",
        "pve-vm-9.0/100",
        "pve-vm-9.0/101",
        "pve-node-9.0/n1",
        "pve-storage-9.0/n1/local",
    }
    del cluster.files["nodes/n1/lxc/101.conf"]
    await subject.publish(NodeName("n1"), now_s=19)
    assert cluster.said[-1][f"{PREFIX}pve-vm-9.0/101"] == b""
    assert f"{PREFIX}pve-vm-9.0/555" not in cluster.said[-1]
    # The process has taken no time since.
    assert cluster.said[-1][f"{PREFIX}pve-vm-9.0/100"].split(b":")[6] == b"0"


async def test_what_does_not_answer_is_not_told(tmp_path: Path) -> None:
    cluster = FakeCluster({"nodes/n1/qemu-server/100.conf": b"name: web\n"})
    await publisher(cluster, FakeDriver(None), tmp_path).publish(NodeName("n1"), now_s=9)
    assert list(cluster.said[-1]) == [f"{PREFIX}pve-node-9.0/n1"]


@pytest.mark.parametrize("text", ["cores: many\n", "memory: x\n"])
def test_a_guest_whose_file_is_broken_has_no_load(text: str, tmp_path: Path) -> None:
    file = GuestFile(Vmid(100), GuestKind.vm, NodeName("n1"), text, 1, 1)
    assert Meter(proc=tmp_path).guest(file, STOPPED) is None


def test_a_process_that_is_gone_has_no_load(tmp_path: Path) -> None:
    file = GuestFile(Vmid(100), GuestKind.vm, NodeName("n1"), "", 1, 1)
    guest = Meter(proc=tmp_path).guest(file, Observed(RunState.running, 4711, 1.0))
    assert guest is not None
    assert (guest.name, guest.cpu, guest.memory_host_bytes) == ("VM100", None, None)


async def test_traffic_is_told_when_the_driver_counts_it_and_is_not_worth_a_record(tmp_path: Path) -> None:
    cluster = FakeCluster({"nodes/n1/qemu-server/100.conf": b"name: web\n"})
    vms = CountingDriver({Vmid(100): Observed(RunState.running, 77, 5.5)}, {Vmid(100): Traffic(10, 20, None, 40)})
    subject = publisher(cluster, vms, tmp_path)
    await subject.publish(NodeName("n1"), now_s=9)
    assert cluster.said[-1][f"{PREFIX}pve-vm-9.0/100"].split(b":")[11:15] == [b"10", b"20", b"U", b"40"]
    vms.counted = None
    await subject.publish(NodeName("n1"), now_s=19)
    assert cluster.said[-1][f"{PREFIX}pve-vm-9.0/100"].split(b":")[11:15] == [b"U"] * 4
