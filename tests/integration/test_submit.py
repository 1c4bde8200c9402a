"""Jobs on a running Ray cluster with token authentication, submitted by `ray job submit` and launch/submit.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.model.pretrained import resolve_model
from tests.support.held import until
from tests.support.places import BIN, ROOT, TINY_IN_ROOT
from tests.support.program import ENDING_S
from tests.support.reserved import reserved_ports
from tests.support.scraped import Scraper, check_metrics

pytestmark = pytest.mark.long

SMALL = ("run.steps=2", "data.eval_prompts=8", "algorithm.prompts_per_step=4")
TOKEN = "a-token-that-only-this-test-knows"


@dataclass(frozen=True)
class Cluster:
    """A running cluster of one node.

    address: URL of the dashboard.
    folder: contains its --temp-dir and a home folder.
    env: environment variables of its users.
    metrics_port: read by Prometheus.
    """

    address: str
    folder: Path
    env: dict[str, str]
    metrics_port: int

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of this cluster."""
        return subprocess.run(command, cwd=ROOT, env=self.env | env, capture_output=True, text=True, check=False)

    def submit(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run launch/submit.py on this cluster; arguments are its options, "--", and those for launch/train.py."""
        return self.run(sys.executable, "launch/submit.py", "--address", self.address, *arguments, **env)

    def query(self, code: str, **env: str) -> Any:
        """Run `code`, which may use `client`, and return the JSON that it prints.

        It runs in a new process, since Ray reads its token only once.
        """
        begin = "import json\nfrom ray.job_submission import JobSubmissionClient\n"
        client = f"client=JobSubmissionClient({self.address!r})\n"
        done = self.run(sys.executable, "-c", begin + client + code, **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def job(self, begin: str) -> dict[str, Any]:
        """The newest job whose id begins with `begin`."""
        jobs = self.query("print(json.dumps([j.dict() for j in client.list_jobs()], default=str))")
        return max((j for j in jobs if j["submission_id"].startswith(begin)), key=lambda j: j["start_time"])

    def processes(self) -> list[psutil.Process]:
        """All processes of this cluster: its folder is in their command, environment or current folder.

        Ray and vLLM overwrite the first two of some processes. The current folder of a job's processes is its upload.
        """
        found = []
        for process in psutil.process_iter():
            try:
                if any(str(self.folder) in t for t in (*process.cmdline(), process.cwd(), *process.environ().values())):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def at_work(self) -> list[str]:
        """Titles of the processes of actors and engines, and classes of the actors that are alive for Ray."""
        code = (
            "from ray.util.state import list_actors\n"
            f"found=list_actors(address={self.address!r}, filters=[('state','!=','DEAD')])\n"
            "print(json.dumps([a.class_name for a in found]))"
        )
        titles = [" ".join(p.cmdline()) for p in self.processes() if p.is_running()]
        return [t for t in titles if t.startswith(("ray::Learner", "ray::Rollout", "VLLM::"))] + self.query(code)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    resolve_model(Config.load(ROOT / TINY_IN_ROOT))  # built here, so that no job builds it
    names = (
        *("--port", "--dashboard-port", "--ray-client-server-port", "--dashboard-agent-listen-port"),
        "--metrics-export-port",
    )
    with (
        reserved_ports(len(names)) as numbers,
        # A short path, since Ray creates sockets in it, whose paths may have at most 107 characters.
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        ports = dict(zip(names, map(str, numbers), strict=True))
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONPATH"))}
        env |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": f"{folder}/home",
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_metrics_report_interval_ms": "1000",
        }
        Path(env["HOME"]).mkdir()
        address, metrics_port = f"http://127.0.0.1:{ports['--dashboard-port']}", int(ports["--metrics-export-port"])
        running = Cluster(address, Path(folder), env, metrics_port)
        options = [part for pair in ports.items() for part in pair]
        head = ("ray", "start", "--head", "--num-cpus", "4", "--temp-dir", f"{folder}/ray", *options)
        try:
            started = running.run(*head, "--object-store-memory", "200000000")
            assert started.returncode == 0, started.stdout + started.stderr
            yield running
        finally:
            # `ray stop` would end all Ray sessions of this machine.
            left = running.processes()
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=ENDING_S)


def nothing_left(cluster: Cluster) -> bool:
    """Wait until all actors of this cluster's jobs and their processes are gone, which may take seconds."""
    until(lambda: not cluster.at_work())
    return True


def test_upload_is_small_and_complete(tmp_path: Path) -> None:
    import zipfile

    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    names = set(zipfile.ZipFile(tmp_path / "package.zip").namelist())
    assert (tmp_path / "package.zip").stat().st_size < 2_000_000  # the code alone takes 1.2 million
    assert {"launch/train.py", TINY_IN_ROOT, "adagrpo_ray/training/trainer.py", "adagrpo_ray/runs/records.py"} <= names
    assert not {name.split("/")[0] for name in names} & {".git", ".venv", "runs", "tests", "docs", ".mypy_cache"}


@pytest.mark.timeout(900)
def test_plain_ray_job_submit_keeps_the_run_and_serves_its_metrics(cluster: Cluster) -> None:
    command = ("ray", "job", "submit", "--address", cluster.address, "--submission-id", "plain", "--working-dir", ".")
    with Scraper(cluster.metrics_port) as scraper:
        done = cluster.run(*command, "--", "python", "launch/train.py", "--config", TINY_IN_ROOT, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.job("plain")["status"] == "SUCCEEDED"
    runs = Path(cluster.env["HOME"]) / "runs"
    assert f"run.output_dir='runs' is relative, and Ray deletes a job's working directory: using {runs}" in done.stdout
    assert (runs / "plain" / "adapter" / "adapter_model.safetensors").is_file()
    check_metrics(scraper.seen, runs / "plain")
    (found,) = json.loads((cluster.folder / "ray" / "prom_metrics_service_discovery.json").read_text())
    assert any(target.endswith(f":{cluster.metrics_port}") for target in found["targets"])
    assert nothing_left(cluster)


@pytest.mark.slow
def test_submit_shows_the_log_and_fetches_the_results(cluster: Cluster, tmp_path: Path) -> None:
    """The second run on this cluster, after that of the test before."""
    options = ("--name", "good", "--env", "A_SECRET", "--env", "PLAIN=1", "--fetch", str(tmp_path / "got"))
    done = cluster.submit(
        *options, "--", "--config", TINY_IN_ROOT, f"run.output_dir={tmp_path / 'runs'}", *SMALL, A_SECRET="never-shown"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job = cluster.job("good-")
    assert job["status"] == "SUCCEEDED"
    assert f"{cluster.address}/#/jobs/{job['submission_id']}" in done.stdout
    assert "never-shown" not in done.stdout + done.stderr
    assert job["runtime_env"]["env_vars"] == {
        "A_SECRET": "never-shown",
        "PLAIN": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
    }
    assert job["metadata"]["config"] == "tiny-cpu.yaml"
    assert "run.steps=2" in job["metadata"]["overrides"]
    assert {"user", "commit"} <= set(job["metadata"])
    lines = done.stdout.splitlines()
    assert sum(line.startswith(("step 1/2", "step 2/2")) for line in lines) == 2
    assert sum("starting 1 x rollout actor" in line for line in lines) == 1
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    folder = tmp_path / "runs" / job["submission_id"]
    for name in ("adapter/adapter_model.safetensors", "summary.json", "metrics.jsonl"):
        assert (tmp_path / "got" / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "got" / "checkpoints").exists()
    assert nothing_left(cluster)


def test_results_are_copied_through_the_dashboard(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "far away's"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(2_000_000))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "large").write_bytes(b"x")
    code = (
        "from pathlib import Path\nfrom fetch import over_cluster\n"
        "from adagrpo_ray.errors import ResourceError\n"
        "job=client.list_jobs()[0]\n"
        f"over_cluster(client, job, {str(folder)!r}, Path({str(tmp_path / 'got')!r}))\n"
        f"try: over_cluster(client, job, '/no/such/run', Path({str(tmp_path / 'none')!r}))\n"
        "except ResourceError as error: print(json.dumps(str(error)))"
    )
    error = cluster.query(code, PYTHONPATH=f"{ROOT}:{ROOT / 'launch'}")
    assert "cannot copy /no/such/run from the node of job" in error
    assert [p.name for p in (tmp_path / "got").iterdir()] == ["adapter"]
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "got" / name).read_bytes() == (folder / name).read_bytes()


def test_error_on_the_cluster_is_one_line_and_sets_the_exit_code(cluster: Cluster, tmp_path: Path) -> None:
    settings = (f"run.output_dir={tmp_path}", "data.source=nothing.jsonl")
    done = cluster.submit("--name", "bad", "--", "--config", TINY_IN_ROOT, *settings)
    assert done.returncode == 2
    assert cluster.job("bad-")["status"] == "FAILED"
    assert [line for line in done.stdout.splitlines() if line.startswith("error: data.source='nothing.jsonl'")]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.faults
@pytest.mark.slow
def test_ctrl_c_stops_the_job(cluster: Cluster, tmp_path: Path) -> None:
    command = ("launch/submit.py", "--address", cluster.address, "--name", "stopped", "--stop-wait", "20", "--")
    with subprocess.Popen(
        [sys.executable, *command, "--config", TINY_IN_ROOT, f"run.output_dir={tmp_path}", "run.steps=500"],
        cwd=ROOT,
        env=cluster.env,
        stdout=subprocess.PIPE,
        text=True,
    ) as shown:
        assert shown.stdout is not None
        for line in shown.stdout:
            if "checking model" in line:
                shown.send_signal(signal.SIGINT)
    assert shown.returncode == 130
    assert cluster.job("stopped-")["status"] == "STOPPED"
    assert nothing_left(cluster)


# launch/train.py writes a checkpoint after the current step when it receives SIGTERM.
@pytest.mark.faults
@pytest.mark.slow
def test_ray_job_stop_writes_a_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    settings = (f"run.output_dir={tmp_path}", "run.name=cut", "run.steps=500", *SMALL[1:])
    assert cluster.submit("--name", "cut", "--no-wait", "--", "--config", TINY_IN_ROOT, *settings).returncode == 0
    job, metrics = cluster.job("cut-")["submission_id"], tmp_path / "cut" / "metrics.jsonl"
    until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= 2)
    working = cluster.at_work()
    assert {"LearnerActor", "RolloutActor", "JobSupervisor"} <= set(working)
    assert any(title.startswith("VLLM::") for title in working)
    stopped = cluster.run("ray", "job", "stop", "--address", cluster.address, job)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert cluster.job("cut-")["status"] == "STOPPED"
    steps = len(metrics.read_text().splitlines())
    assert (tmp_path / "cut" / "checkpoints" / "latest").read_text().strip() == f"step-{steps:06}"
    assert nothing_left(cluster)


@pytest.mark.parametrize(
    "env",
    [
        {"RAY_AUTH_TOKEN": "wrong"},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/no/such/file"},
    ],
    ids=["wrong", "not sent", "no file"],
)
def test_invalid_token_is_one_error(cluster: Cluster, env: dict[str, str]) -> None:
    done = cluster.submit("--", "run.output_dir=/runs", **env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the cluster at {cluster.address} takes no request without its token")
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert TOKEN not in done.stderr
