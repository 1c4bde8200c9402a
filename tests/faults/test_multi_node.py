"""A cluster of three hosts with different addresses: network namespaces on this machine, joined by a bridge."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.model.pretrained import resolve_model
from tests.support.held import Gate, started, until
from tests.support.places import BIN, ROOT, TINY_IN_ROOT
from tests.support.program import metrics, title
from tests.support.reserved import reserved

HOSTS = ("head", "first", "second")


def ip(*arguments: str) -> str:
    return subprocess.run(("ip", *arguments), capture_output=True, text=True, check=True).stdout


def may_make_networks() -> bool:
    name = f"probe-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "exec", name, "true")
        ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


pytestmark = pytest.mark.skipif(not may_make_networks(), reason="needs root and network namespaces (ip netns)")


@dataclass(frozen=True)
class Network:
    """Hosts on a bridge, on which this machine has the first address; `name` is the prefix of their namespaces."""

    name: str
    prefix: str
    env: dict[str, str]

    def address(self, host: str) -> str:
        return f"{self.prefix}.{HOSTS.index(host) + 2}"

    def run(self, host: str | None, *command: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, or outside of all hosts, with the token of the cluster."""
        there = ("ip", "netns", "exec", f"{self.name}-{host}") if host else ()
        return subprocess.run(
            (*there, *command), cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def processes(self, host: str) -> list[psutil.Process]:
        found = []
        for pid in ip("netns", "pids", f"{self.name}-{host}").split():
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                found.append(psutil.Process(int(pid)))
        return found

    def kill(self, host: str) -> None:
        """Kill all processes on a host at once."""
        for process in self.processes(host):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def unused(number: int) -> bool:
    """Return whether this machine has no such network."""
    return f" 10.219.{number}." not in ip("-o", "addr")


@pytest.fixture
def network(gate: Gate) -> Iterator[Network]:
    """Create hosts that run nothing yet; they and their processes are removed afterwards."""
    resolve_model(Config.load(ROOT / TINY_IN_ROOT))  # built beforehand, so that no host builds it
    name = f"ada{os.getpid()}"
    with (
        reserved("network", range(1, 255), unused) as number,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONPATH"))}
        token = Path(folder) / "token"
        token.write_text("a-token-that-only-this-test-knows")
        env |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(gate.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        made, switch = Network(name, f"10.219.{number}", env), f"{name}-switch"
        try:
            # The bridge is in a namespace too: a firewall of this machine, such as Docker's, may drop bridged packets.
            ip("netns", "add", switch)
            ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            plug(switch, "outside", name, f"{made.prefix}.1")
            for host in HOSTS:
                ip("netns", "add", f"{name}-{host}")
                plug(switch, host, "eth0", made.address(host), f"{name}-{host}")
            yield made
        finally:
            there = ip("netns", "list").split()
            for host in HOSTS:
                if f"{name}-{host}" in there:
                    made.kill(host)
                    ip("netns", "del", f"{name}-{host}")
            if switch in there:
                ip("netns", "del", switch)  # and all cables with it


def plug(switch: str, cable: str, interface: str, address: str, space: str | None = None) -> None:
    """Give a host, or this machine, an interface with an address, at the end of a cable to the switch."""
    where = ("-n", space) if space else ()
    there = ("netns", space) if space else ()
    ip("-n", switch, "link", "add", cable, "type", "veth", "peer", "name", interface, *(there or ("netns", "1")))
    ip("-n", switch, "link", "set", cable, "master", "bridge", "up")
    ip(*where, "addr", "add", f"{address}/24", "dev", interface)
    for name in (interface, "lo"):
        ip(*where, "link", "set", name, "up")


def start_ray(network: Network, host: str, *options: str) -> None:
    small = ("--node-ip-address", network.address(host), "--object-store-memory", "200000000", "--disable-usage-stats")
    done = network.run(host, "ray", "start", *small, *options)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_job_continues_after_loss_of_worker_node(network: Network, gate: Gate, tmp_path: Path) -> None:
    head = network.address("head")
    start_ray(network, "head", "--head", "--num-cpus", "0", "--dashboard-host", head)
    join = ("--address", f"{head}:6379", "--num-cpus", "2", "--resources")
    start_ray(network, "first", *join, '{"rollout": 1, "learner": 1}')
    start_ray(network, "second", *join, '{"rollout": 1}')

    submit = ("ray", "job", "submit", "--address", f"http://{head}:8265", "--working-dir", ".", "--")
    train = ("python", "launch/train.py", f"run.output_dir={tmp_path}", "run.name=run", "run.steps=5")
    where = ("rollout.resources.rollout=1", "learner.resources.learner=1", "data.eval_prompts=8")
    refused = network.run(None, *submit, *train, *where, "rollout.actors=3")
    assert refused.returncode == 1
    assert "need 3 of the custom resource 'rollout'" in refused.stdout
    assert "the cluster has 2" in refused.stdout

    gate.close(tmp_path / "run" / "metrics.jsonl", (2, 1))
    with started(
        (*submit, *train, *where, "rollout.actors=2", *gate.settings),
        cwd=ROOT,
        env=network.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        gate.wait(job)
        titles = {host: [title(process) for process in network.processes(host)] for host in HOSTS}
        network.kill("second")
        gate.open()
        output, _ = job.communicate()
    assert job.returncode == 0, output
    for host, expected in (("first", True), ("second", True), ("head", False)):
        assert any("RolloutActor" in title for title in titles[host]) == expected
    assert any("LearnerActor" in title for title in titles["first"])
    steps = metrics(tmp_path / "run")
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    assert [step["rollout_actors"] for step in steps][::4] == [2, 1]
    assert "died" in output
    assert "starting another one" in output
    assert "succeeded" in output
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size > 10_000
    until(lambda: not any("Actor" in title(process) for process in network.processes("first")))
