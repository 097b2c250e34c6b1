"""Real containers on a throw-away host: started, limited, reached, ended, and left alone by the agent's death."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent
CGROUPS = Path("/sys/fs/cgroup")
CONFIG = "hostname: web\nostype: busybox\nmemory: 64\nswap: 0\n"


class Failed(Exception):
    """The driver raised: the error's class, message and remedy."""


class Agent:
    def __init__(self, host: "Host") -> None:
        script = [sys.executable, str(HERE / "lxc_agent.py"), str(host.directory)]
        self._process = subprocess.Popen(host.inside(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid: int = self._answer()["pid"]

    def call(self, method: str, vmid: int = 0, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"method": method, "vmid": vmid, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        reply = self._answer()
        if "error" in reply:
            raise Failed(*reply["error"])
        return reply["result"]

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the agent is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer


class Host:
    """One throw-away host; `agent` is the process that the tests talk to."""

    def __init__(self) -> None:
        self.name = f"kvlxc-{os.getpid()}"
        # Not in pytest's own directory: the users of an unprivileged container must be able to reach their files.
        self.directory = Path(tempfile.mkdtemp(prefix="kvlxc-"))
        self.directory.chmod(0o755)
        command = ["bash", str(HERE / "lxc_node.sh"), self.name, str(self.directory)]
        self._unshare = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        wait_until((self.directory / "ready").exists, 10)
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        self._init = int(children[0])
        make_busybox_template(self.directory / "busybox.tar.gz")
        self.agent = Agent(self)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """A command that runs on this host, in its namespaces and cgroups."""
        enter = 'pid=$1 name=$2; shift 2; for h in /sys/fs/cgroup/*/; do echo $$ >"$h/$name/cgroup.procs"; done; '
        enter += 'exec nsenter -t "$pid" -p -m -n -u -i -C -- "$@"'
        return ["bash", "-c", enter, "_", str(self._init), self.name, *argv]

    def run(self, *argv: str) -> str:
        return subprocess.run(self.inside(argv), check=True, capture_output=True, text=True, timeout=20).stdout

    def replace_agent(self) -> None:
        """The old one is killed, not asked."""
        self.run("kill", "-9", str(self.agent.pid))
        with contextlib.suppress(OSError):
            self.agent.end()
        self.agent = Agent(self)

    def cgroups(self) -> list[Path]:
        return [path for path in CGROUPS.glob(f"*/{self.name}/kvorum-*") if "lxc.pivot" not in path.name]

    def down(self) -> None:
        os.kill(self._init, signal.SIGKILL)
        self._unshare.wait(10)
        for root in CGROUPS.glob(f"*/{self.name}"):
            wait_until(lambda root=root: removed(root), 10)
        shutil.rmtree(self.directory)


def removed(cgroup: Path) -> bool:
    for path, _, _ in os.walk(cgroup, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
    return not cgroup.exists()


def wait_until(condition: Callable[[], Any], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def make_busybox_template(target: Path) -> None:
    """A root file system of nothing but busybox, as a template."""
    root = target.with_suffix(".root")
    for directory in ("bin", "sbin", "etc/init.d", "proc", "sys", "dev", "run", "tmp", "root", "data"):
        (root / directory).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in ("sh", "ip", "cat", "id", "hostname", "sleep", "echo", "touch", "ls", "stat", "head", "dd", "wc"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "sbin/init").symlink_to("/bin/busybox")
    (root / "etc/inittab").write_text("::sysinit:/etc/init.d/rcS\n::respawn:/bin/sleep 1000\n")
    rc = root / "etc/init.d/rcS"
    rc.write_text("#!/bin/sh\necho the container is up as $(hostname)\n")
    rc.chmod(0o755)
    subprocess.run(["tar", "-C", str(root), "-czf", str(target), "."], check=True)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.down()


@pytest.fixture
def vmid(host: Host, request: pytest.FixtureRequest) -> Iterator[int]:
    """A container of this test alone, unpacked and stopped; its config is CONFIG or the test's own."""
    number = 100 + len(list((host.directory / "images").glob("*")) if (host.directory / "images").exists() else [])
    host.agent.call("unpack", number, config=getattr(request, "param", CONFIG))
    yield number
    host.agent.call("stop", number)


def console(host: Host, vmid: int) -> bytes:
    return base64.b64decode(host.agent.call("console_log", vmid, tail_bytes=4096))


def shell(host: Host, vmid: int, command: str) -> str:
    status, output = host.agent.call("exec", vmid, argv=["/bin/sh", "-c", command])
    assert status == 0, output
    return str(output).strip()


def test_a_container_starts_says_so_on_its_console_and_is_observed(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG)
    observed = host.agent.call("observe", vmid)
    assert observed["state"] == "running"
    assert host.run("cat", f"/proc/{observed['pid']}/comm").strip() == "init"
    assert str(vmid) in host.agent.call("observe_all")
    assert host.agent.call("witness", vmid) == "RUNNING"
    assert f"kvorum-ct-{vmid}/" in host.run("cat", f"/proc/{observed['pid']}/cgroup")
    wait_until(lambda: b"the container is up as web" in console(host, vmid), 10)
    time.sleep(0.05)
    assert host.agent.call("observe", vmid)["uptime_s"] > observed["uptime_s"]


def test_a_running_container_is_not_started_again(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG)
    before = host.agent.call("observe", vmid)["pid"]
    with pytest.raises(Failed, match="already runs"):
        host.agent.call("start", vmid, config=CONFIG)
    assert host.agent.call("observe", vmid)["pid"] == before


def test_a_container_is_reached_over_the_bridge_at_its_address(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG + "net0: name=eth0,bridge=vmbr0,ip=10.77.1.50/24,gw=10.77.1.1\n")
    assert "inet 10.77.1.50/24" in shell(host, vmid, "ip addr show eth0")
    assert "default via 10.77.1.1" in shell(host, vmid, "ip route")
    before = host.agent.call("traffic")[str(vmid)]
    host.run("busybox", "ping", "-c", "1", "-w", "5", "-s", "1000", "10.77.1.50")
    after = host.agent.call("traffic")[str(vmid)]
    for direction in ("received_bytes", "sent_bytes"):
        assert after[direction] - before[direction] >= 1000


def test_memory_beyond_the_limit_is_refused(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG.replace("memory: 64", "memory: 32"))
    status, _ = host.agent.call("exec", vmid, argv=["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"])
    assert status == 137
    status, _ = host.agent.call("exec", vmid, argv=["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=1M", "count=1"])
    assert status == 0


def test_a_container_shuts_down_when_asked(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG)
    wait_until(lambda: b"is up" in console(host, vmid), 10)
    host.agent.call("shutdown", vmid, timeout_s=20)
    assert host.agent.call("observe", vmid)["state"] == "stopped"
    assert host.agent.call("witness", vmid) == "STOPPED"
    assert host.cgroups() == []


def test_a_container_that_does_not_shut_down_in_time_still_runs(host: Host, vmid: int) -> None:
    # Nobody handles SIGWINCH, so this container never hears that it should go.
    host.agent.call("start", vmid, config=CONFIG + "lxc.signal.halt: SIGWINCH\n")
    with pytest.raises(Failed, match="still runs"):
        host.agent.call("shutdown", vmid, timeout_s=0.3)
    assert host.agent.call("observe", vmid)["state"] == "running"


def test_a_stopped_container_is_gone_with_all_it_had(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG + "net0: name=eth0,bridge=vmbr0\n")
    assert f"veth{vmid}i0" in host.run("ip", "-br", "link")
    host.agent.call("stop", vmid)
    host.agent.call("stop", vmid)
    assert host.agent.call("observe", vmid) == {"state": "stopped", "pid": None, "uptime_s": 0.0}
    assert host.cgroups() == []
    wait_until(lambda: f"veth{vmid}i0" not in host.run("ip", "-br", "link"), 5)


def freezer_of(host: Host, vmid: int) -> Path:
    return CGROUPS / "freezer" / host.name / f"kvorum-ct-{vmid}" / "freezer.state"


def test_a_paused_container_is_seen_as_paused_and_can_be_stopped(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG)
    freezer_of(host, vmid).write_text("FROZEN")
    assert host.agent.call("observe", vmid)["state"] == "paused"
    with pytest.raises(Failed, match="is paused"):
        host.agent.call("shutdown", vmid, timeout_s=1)
    host.agent.call("stop", vmid)
    assert host.agent.call("observe", vmid)["state"] == "stopped"


def test_the_death_of_the_agent_does_not_touch_a_container(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG)
    before = host.agent.call("observe", vmid)
    host.replace_agent()
    after = host.agent.call("observe", vmid)
    assert after["pid"] == before["pid"]
    assert after["uptime_s"] >= before["uptime_s"]
    host.agent.call("stop", vmid)
    assert host.agent.call("observe", vmid)["state"] == "stopped"


def monitor_of(host: Host, vmid: int) -> str:
    return host.run("cat", f"/sys/fs/cgroup/pids/kvorum-lxc-{vmid}/cgroup.procs").strip()


def test_a_stuck_monitor_blocks_neither_the_view_nor_the_stop(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG)
    host.run("kill", "-STOP", monitor_of(host, vmid))
    assert host.agent.call("observe", vmid)["state"] == "running"
    host.agent.call("stop", vmid)
    assert host.agent.call("observe", vmid)["state"] == "stopped"
    assert host.cgroups() == []


def test_a_container_starts_again_after_its_monitor_was_killed(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG)
    host.run("kill", "-9", monitor_of(host, vmid))
    wait_until(lambda: host.agent.call("observe", vmid)["state"] == "stopped", 5)
    # The dead monitor has left its cgroups, over which liblxc alone would stumble.
    assert host.cgroups()
    host.agent.call("start", vmid, config=CONFIG)
    assert host.agent.call("observe", vmid)["state"] == "running"


@pytest.mark.parametrize("vmid", [CONFIG + "unprivileged: 1\n"], indirect=True)
def test_root_of_an_unprivileged_container_is_nobody_on_the_host(host: Host, vmid: int) -> None:
    data = host.directory / f"data-{vmid}"
    data.mkdir()
    config = CONFIG + "unprivileged: 1\nmp0: local:data,mp=/data\n"
    host.agent.call("start", vmid, config=config, mounts={"mp0": str(data)})
    pid = host.agent.call("observe", vmid)["pid"]
    assert "Uid:\t100000\t" in host.run("cat", f"/proc/{pid}/status")
    assert shell(host, vmid, "id -u; cat /etc/hostname; touch /data/mine; stat -c %u /data/mine").split() == [
        "0",
        "web",
        "0",
    ]
    assert (data / "mine").stat().st_uid == 100_000
    with pytest.raises(Failed, match="belongs to user 100000"):
        host.agent.call("stop", vmid)
        host.agent.call("start", vmid, config=CONFIG)


def loop_devices(path: Path) -> str:
    return subprocess.run(["losetup", "--associated", str(path)], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("number", "more"), [(190, ""), (191, "unprivileged: 1\n")])
def test_a_container_on_images_has_their_space_and_no_more(host: Host, number: int, more: str) -> None:
    root, data = host.directory / "images" / str(number), host.directory / f"data-{number}.raw"
    config = CONFIG + more + "mp0: local:data,mp=/data\n"
    host.agent.call("unpack", number, config=config, image_bytes=8 << 20)
    with data.open("wb") as stream:
        stream.truncate(1 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(data)], check=True)
    host.agent.call("start", number, config=config, mounts={"mp0": str(data)})
    assert str(root) in loop_devices(root)
    # Nobody but the container sees them.
    assert f"/{number}/" not in host.run("cat", "/proc/mounts")
    status, _ = host.agent.call("exec", number, argv=["/bin/dd", "if=/dev/zero", "of=/big", "bs=1M", "count=16"])
    assert status != 0
    assert int(shell(host, number, "wc -c < /big")) < 8 << 20
    assert shell(host, number, "touch /data/mine; stat -c %u /data/mine") == "0"
    host.agent.call("stop", number)
    assert loop_devices(root) == loop_devices(data) == ""
    host.agent.call("forget", number)
    assert not (host.directory / "lxc" / str(number)).exists()


def test_a_read_only_mount_point_cannot_be_written(host: Host, vmid: int) -> None:
    data = host.directory / f"data-{vmid}"
    data.mkdir()
    (data / "given").write_text("from outside")
    config = CONFIG + f"mp0: {data},mp=/srv/in here,ro=1\n"
    host.agent.call("start", vmid, config=config, mounts={"mp0": str(data)})
    assert shell(host, vmid, "cat '/srv/in here/given'") == "from outside"
    status, _ = host.agent.call("exec", vmid, argv=["/bin/touch", "/srv/in here/mine"])
    assert status != 0


def test_a_start_that_liblxc_refuses_says_why_and_leaves_nothing(host: Host, vmid: int) -> None:
    with pytest.raises(Failed, match=r"nosuch") as caught:
        host.agent.call("start", vmid, config=CONFIG + "lxc.mount.entry: /nosuch/dir data none bind 0 0\n")
    assert caught.value.args[0] == "CommandFailed"
    assert f"{vmid}.log" in caught.value.args[2]
    assert host.agent.call("observe", vmid)["state"] == "stopped"
    assert host.cgroups() == []


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ("net0: name=eth0,bridge=vmbr9\n", "NotFound", "no bridge vmbr9"),
        ("net0: name=eth0,bridge=vmbr0,ip=nonsense\n", "ConfigError", "net0: ip='nonsense'"),
        ("unprivileged: 1\n", "Refused", "belongs to user 0"),
    ],
)
def test_what_cannot_start_is_said_before_liblxc_is_asked(
    host: Host, vmid: int, more: str, error: str, message: str
) -> None:
    with pytest.raises(Failed) as caught:
        host.agent.call("start", vmid, config=CONFIG + more)
    assert caught.value.args[0] == error
    assert message in caught.value.args[1]


@pytest.mark.parametrize("after_s", [0.0, 0.003, 0.006, 0.01, 0.02, 0.04])
def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing_running(host: Host, vmid: int, after_s: float) -> None:
    was_cancelled = host.agent.call("start_and_cancel", vmid, config=CONFIG, after_s=after_s)
    state = host.agent.call("observe", vmid)["state"]
    if not was_cancelled:
        # Faster than this test.
        assert state == "running"
        return
    assert state == "stopped"
    assert not [
        line for line in host.run("ps", "ax", "-o", "args").splitlines() if line.startswith(("lxc-start", "[lxc"))
    ]
    assert host.cgroups() == []


def test_a_container_of_somebody_else_is_not_taken_over(host: Host, vmid: int) -> None:
    foreign = host.directory / "lxc" / str(vmid) / "config"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("lxc.uts.name = theirs\n")
    with pytest.raises(Failed, match="not Kvorum's"):
        host.agent.call("start", vmid, config=CONFIG)
    host.agent.call("forget", vmid)
    assert foreign.read_text() == "lxc.uts.name = theirs\n"


def test_a_forgotten_container_leaves_no_files_behind(host: Host, vmid: int) -> None:
    host.agent.call("start", vmid, config=CONFIG)
    with pytest.raises(Failed, match="runs"):
        host.agent.call("forget", vmid)
    host.agent.call("stop", vmid)
    assert (host.directory / "log/console" / f"{vmid}.log").exists()
    host.agent.call("forget", vmid)
    left = [path for path in host.directory.rglob(f"*{vmid}*") if not path.is_relative_to(host.directory / "images")]
    assert left == []
    assert console(host, vmid) == b""
