"""Train on a running Ray cluster: python launch/submit.py -- --config launch/configs/cluster.yaml [key=value ...]"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a checkout that is not installed

from ending import not_empty, show_any_text
from follow import follow, notify
from train import DEFAULT
from train import parse as parse_training

from adagrpo_ray.cluster.jobs import is_lasting
from adagrpo_ray.config import Config
from adagrpo_ray.config.secrets import holds_secret
from adagrpo_ray.errors import AdaGRPOError, ConfigError, ResourceError, first_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parent.parent
"""The folder that is uploaded, without the files in .rayignore and .gitignore."""
LOCAL = "http://127.0.0.1:8265"
ANSWER_S = 15.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by Ray's supervisor of the job: its default of 3 s is too short for a checkpoint."""


@dataclass(frozen=True)
class Job:
    """A job to submit.

    id: Ray's submission id.
    entrypoint: the command line.
    run_folder: the future run folder, a path on the cluster or a URL.
    env: environment variables of the job.
    metadata: shown in Ray's dashboard.
    """

    id: str
    entrypoint: str
    run_folder: str
    env: dict[str, str]
    metadata: dict[str, str]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/submit.py",
        description="Submit a training run as a job to a running Ray cluster, show its log, and exit with its status.",
        usage="%(prog)s [options] -- [--config FILE] [key=value ...]",
        epilog="Arguments after -- are passed to launch/train.py. The token of the cluster is given as for Ray: "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", LOCAL),
        help=f"URL of the cluster's dashboard (default: RAY_API_SERVER_ADDRESS if set, else {LOCAL})",
    )
    parser.add_argument("--name", help="prefix of the submission id (default: run.name, else the name of the config)")
    parser.add_argument(
        "--entrypoint-cpus",
        type=float,
        default=0.0,
        metavar="N",
        help="CPUs for launch/train.py itself; with 0, the default, Ray runs it on the head node",
    )
    parser.add_argument(
        "--entrypoint-resources",
        default="{}",
        metavar="JSON",
        help="custom resources that select the node of launch/train.py, as in '{\"driver\": 1}'",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="KEY[=VALUE]",
        help="an environment variable for the job; without a value, the value in this shell, which is never printed",
    )
    parser.add_argument("--no-wait", action="store_true", help="only submit, without waiting for log and exit status")
    parser.add_argument("--fetch", type=Path, metavar="DIR", help="after success, copy adapter and records into DIR")
    parser.add_argument(
        "--stop-wait",
        type=int,
        default=120,
        metavar="SECONDS",
        help="time for a last checkpoint after a stop, before Ray kills the job (default: 120)",
    )
    parser.add_argument("training", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.fetch and options.no_wait:
        parser.error("--fetch waits for the end of the job; leave out --no-wait")
    return options


def prepare(options: argparse.Namespace) -> Job:
    """The job for these options. Raises ConfigError for every mistake that can be found without the cluster."""
    not_empty(options, "--address", "--name")
    _check_numbers(options)
    training = parse_training(options.training)
    not_empty(training, "--config", "--resume")
    given = Path(training.config)
    if given != DEFAULT and (given.is_absolute() or not (ROOT / given).resolve().is_relative_to(ROOT)):
        raise ConfigError(f"--config {given} must be relative to {ROOT}, since that folder is uploaded; copy it there")
    config = Config.load(ROOT / given, training.overrides)
    if not is_lasting(config.run.output_dir):
        raise ConfigError(
            f"run.output_dir={config.run.output_dir!r} is relative, and Ray deletes a job's working directory; "
            "add run.output_dir=/a/folder/that/all/nodes/share or a URL"
        )
    if any(map(holds_secret, [*training.overrides, training.resume or ""])):
        raise ConfigError("an argument holds a URL with a secret, which the dashboard would show; pass it by --env")
    if training.resume == "auto" and config.run.name is None:
        raise ConfigError("--resume auto continues the run of run.name, which is not set; set it, or give a folder")
    name = options.name or config.run.name or given.stem
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} may have only letters, digits, dots, dashes and underscores")
    job = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_folder = f"{config.run.output_dir.rstrip('/')}/{config.run.name or job}"
    if training.resume not in (None, "auto"):  # a run folder, or a path in its checkpoints/: the run continues there
        run_folder = re.sub(r"/checkpoints/(step-\d+|best)$", "", training.resume.rstrip("/"))
    metadata = {
        "job_name": name,
        "config": given.name,
        "overrides": shlex.join(training.overrides),
        "commit": _commit(),
        "user": _user(),
    }
    return Job(
        id=job,
        entrypoint=shlex.join(["python", "launch/train.py", *options.training]),
        run_folder=run_folder,
        env={STOP_WAIT: str(options.stop_wait), **_variables(options.env)},
        metadata=metadata,
    )


def _check_numbers(options: argparse.Namespace) -> None:
    """Raise ConfigError for numbers that Ray refuses after the upload, and for a --fetch that would fail at the end."""
    if not 0 <= options.entrypoint_cpus < 2**31:
        raise ConfigError(f"--entrypoint-cpus {options.entrypoint_cpus} must be a number of CPUs, 0 or more")
    if not 0 < options.stop_wait < 2**31:
        raise ConfigError(f"--stop-wait {options.stop_wait} must be a number of seconds, 1 or more")
    if options.fetch is not None:
        parent = next(folder for folder in (options.fetch, *options.fetch.absolute().parents) if folder.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise ConfigError(f"--fetch {options.fetch} cannot be created in {parent}; give a writable folder")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user id has no name, as in containers
        return "unknown"


def _variables(given: Sequence[str]) -> dict[str, str]:
    variables = dict(map(_variable, given))
    if len(variables) < len(given):
        raise ConfigError("--env names a variable twice; give it once")
    return variables


def _variable(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not VARIABLE.fullmatch(key):
        raise ConfigError("--env must be KEY or KEY=VALUE, with the name of a variable as KEY, such as HF_TOKEN")
    if not equals and key not in os.environ:
        raise ConfigError(f"--env {key} is not set here; export it, or give --env {key}=VALUE")
    return key, value if equals else os.environ[key]


def _commit() -> str:
    """The commit that is uploaded, with "-dirty" if files differ from it; "unknown" without git."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def resources(text: str) -> dict[str, float]:
    """Parse resources from a JSON object of numbers. Raises ConfigError if `text` is anything else."""
    try:
        amounts = {key: float(value) for key, value in json.loads(text, object_pairs_hook=_each_once).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        amounts = {"": 0.0}
    if all(0 < amount < 2**31 for amount in amounts.values()):
        return amounts
    raise ConfigError(
        f"--entrypoint-resources {text!r} is not a JSON object of numbers above 0 with distinct names; write "
        "'{\"driver\": 1}'"
    )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


@contextmanager
def cluster_errors(address: str) -> Iterator[None]:
    """Convert any error of a cluster to a ResourceError with a message of one sentence."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AdaGRPOError:
        raise
    except AuthenticationError as error:
        reason = first_line(error).split(". Ensure")[0]
        raise ResourceError(
            f"the cluster at {address} takes no request without its token ({reason}); set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN to the token or RAY_AUTH_TOKEN_PATH to a file with it"
        ) from None
    except OSError as error:  # the base of all connection errors of requests and aiohttp
        raise ResourceError(
            f"no answer from {address} ({first_line(error)}); --address must be that of a dashboard"
        ) from None
    except Exception as error:  # RuntimeError and ValueError of Ray; KeyError and TypeError if it is another server
        raise ResourceError(f"the cluster at {address} refused: {first_line(error)}") from None


def connect(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {address!r} must begin with http:// or https://, as in {LOCAL}")
    _check_answer(address)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # takes precedence over RAY_ADDRESS of this shell
    return JobSubmissionClient(address)


def _check_answer(address: str) -> None:
    """Raise ConfigError or OSError unless a server answers in time: Ray's client waits without limit."""
    import requests

    try:
        requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S)
    except requests.exceptions.InvalidURL as error:
        raise ConfigError(f"--address {address!r} is not a URL ({first_line(error)}); write it as {LOCAL}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block no warning is logged: Ray's are not useful here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def submit(options: argparse.Namespace) -> int:
    job = prepare(options)
    named = resources(options.entrypoint_resources)
    with _quiet(), cluster_errors(options.address):
        client = connect(options.address)
        runtime_env: dict[str, Any] = {"working_dir": str(ROOT), "env_vars": job.env}
        client.submit_job(
            entrypoint=job.entrypoint,
            submission_id=job.id,
            runtime_env=runtime_env,
            metadata=job.metadata,
            entrypoint_num_cpus=options.entrypoint_cpus,
            entrypoint_resources=named or None,
        )
        notify(f"job {job.id}, run folder {job.run_folder}")
        notify(f"dashboard: {options.address.rstrip('/')}/#/jobs/{job.id}")
        notify(f"to stop it: ray job stop --address {options.address} {job.id}")
        if options.no_wait:
            return 0
        try:
            ended = asyncio.run(follow(client, job.id))
        except asyncio.CancelledError:
            notify(f"stopped following job {job.id}, which is still on the cluster")
            return 130
        notify(f"job {job.id}: {ended.status.value}")
        if ended.status == "STOPPED":
            return 130
        if ended.status == "FAILED":
            if ended.driver_exit_code is None:  # its program did not start
                raise ResourceError(f"the cluster did not start job {job.id}: {ended.message}")
            return ended.driver_exit_code if 0 < ended.driver_exit_code < 256 else 1
        if options.fetch:
            from fetch import fetch

            notify(f"{options.fetch} has the results, {fetch(client, ended, job.run_folder, options.fetch)}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    show_any_text()
    try:
        return submit(options)
    except AdaGRPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
