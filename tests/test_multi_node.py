"""A cluster of three hosts with addresses of their own: network namespaces on this machine, joined by a bridge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from adagrpo_ray.config import load_config
from adagrpo_ray.model.load import resolve_model

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TINY = "launch/configs/tiny-cpu.yaml"
NETWORK, HOSTS = "10.219.7", ("head", "first", "second")
DASHBOARD = f"http://{NETWORK}.2:8265"


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
    """Hosts on a bridge, which is 10.219.7.1; `name` begins the names of their namespaces."""

    name: str
    env: dict[str, str]

    def run(self, host: str | None, *command: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """A command on a host, or outside of all of them, with the cluster's token."""
        there = ("ip", "netns", "exec", f"{self.name}-{host}") if host else ()
        return subprocess.run(
            (*there, *command), cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def processes(self, host: str) -> list[psutil.Process]:
        return [psutil.Process(int(pid)) for pid in ip("netns", "pids", f"{self.name}-{host}").split()]

    def kill(self, host: str) -> None:
        """End everything on a host at once."""
        for process in self.processes(host):
            process.kill()


@pytest.fixture
def network() -> Iterator[Network]:
    """Hosts that run nothing yet; whatever ran on them is gone afterwards, and so are they."""
    resolve_model(load_config(ROOT / TINY))  # built beforehand, so that no host builds it
    name = f"ada{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONPATH"))}
        token = Path(folder) / "token"
        token.write_text("a-token-that-only-this-test-knows")
        env |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        made, switch = Network(name, env), f"{name}-switch"
        try:
            # The bridge is in a namespace too: this machine's firewall, such as Docker's, may drop what others bridge.
            ip("netns", "add", switch)
            ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            plug(switch, "outside", name, f"{NETWORK}.1")
            for number, host in enumerate(HOSTS, start=2):
                ip("netns", "add", f"{name}-{host}")
                plug(switch, host, "eth0", f"{NETWORK}.{number}", f"{name}-{host}")
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
    address = f"{NETWORK}.{HOSTS.index(host) + 2}"
    small = ("--node-ip-address", address, "--object-store-memory", "200000000", "--disable-usage-stats")
    started = network.run(host, "ray", "start", *small, *options, timeout=60)
    assert started.returncode == 0, started.stdout + started.stderr


def metrics(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_goes_on_when_a_worker_node_is_lost(network: Network, tmp_path: Path) -> None:
    start_ray(network, "head", "--head", "--num-cpus", "0", "--dashboard-host", f"{NETWORK}.2")
    join = ("--address", f"{NETWORK}.2:6379", "--num-cpus", "2", "--resources")
    start_ray(network, "first", *join, '{"rollout": 1, "learner": 1}')
    start_ray(network, "second", *join, '{"rollout": 1}')

    submit = ("ray", "job", "submit", "--address", DASHBOARD, "--working-dir", ".", "--")
    train = ("python", "launch/train.py", f"run.folder={tmp_path}", "run.name=run", "run.steps=5")
    where = ("rollout.resources.rollout=1", "learner.resources.learner=1", "data.held_out_prompts=8")
    refused = network.run(None, *submit, *train, *where, "rollout.actors=3")
    assert refused.returncode == 1
    assert "need 3 of the custom resource 'rollout'" in refused.stdout
    assert "the cluster has 2" in refused.stdout

    with subprocess.Popen(
        (*submit, *train, *where, "rollout.actors=2"),
        cwd=ROOT,
        env=network.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        while len(metrics(tmp_path / "run")) < 2:
            assert job.poll() is None, job.communicate()
            time.sleep(0.05)
        titles = {host: [p.cmdline()[0] for p in network.processes(host) if p.cmdline()] for host in HOSTS}
        network.kill("second")
        output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    for host, expected in (("first", True), ("second", True), ("head", False)):
        assert any("RolloutActor" in title for title in titles[host]) == expected
    assert any("LearnerActor" in title for title in titles["first"])
    steps = metrics(tmp_path / "run")
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    assert [step["rollout_actors"] for step in steps][::4] == [2, 1]
    assert "died" in output
    assert "another one starts" in output
    assert "succeeded" in output
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size > 10_000
    end = time.monotonic() + 30
    while any("Actor" in " ".join(p.cmdline()) for p in network.processes("first")):
        assert time.monotonic() < end, "actors outlive their job"
        time.sleep(0.5)
