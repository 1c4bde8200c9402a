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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a plain checkout too

from ending import not_empty, show_any_text
from follow import follow, say
from train import DEFAULT
from train import parse as parse_training

from adagrpo_ray.cluster.jobs import is_lasting
from adagrpo_ray.config import load_config
from adagrpo_ray.config.secrets import holds_secret
from adagrpo_ray.errors import AdaGRPOError, ConfigError, ResourceError, first_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parent.parent
"""What is uploaded, without what .rayignore and .gitignore name."""
LOCAL = "http://127.0.0.1:8265"
ANSWER_S = 15.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by the process that watches over the program of a job: Ray's own 3 s are too few for a checkpoint."""


@dataclass(frozen=True)
class Job:
    """What is submitted: Ray's submission id, the command line, and where the run folder will be."""

    id: str
    entrypoint: str
    run_folder: str
    env: dict[str, str]
    metadata: dict[str, str]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/submit.py",
        description="Submit a training run as a job to a running Ray cluster, show its log, end with its exit status.",
        usage="%(prog)s [options] -- [--config FILE] [key=value ...]",
        epilog="What follows -- is for launch/train.py. The token of the cluster is taken as Ray takes it: "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", LOCAL),
        help=f"the cluster's dashboard (default: RAY_API_SERVER_ADDRESS if set, else {LOCAL})",
    )
    parser.add_argument("--name", help="begin of the submission id (default: run.name, else the name of the config)")
    parser.add_argument(
        "--entrypoint-cpus",
        type=float,
        default=0.0,
        metavar="N",
        help="CPUs that launch/train.py itself takes; with 0, the default, Ray puts it on the head node",
    )
    parser.add_argument(
        "--entrypoint-resources",
        default="{}",
        metavar="JSON",
        help="custom resources that say which node launch/train.py runs on, as in '{\"driver\": 1}'",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="KEY[=VALUE]",
        help="an environment variable for the job; without a value that of this shell, which is never shown here",
    )
    parser.add_argument("--no-wait", action="store_true", help="only submit: neither the log nor the exit status")
    parser.add_argument("--fetch", type=Path, metavar="DIR", help="after success copy adapter and reports into DIR")
    parser.add_argument(
        "--stop-wait",
        type=int,
        default=120,
        metavar="SECONDS",
        help="after a stop the job has this long for a last checkpoint before Ray kills it (default: 120)",
    )
    parser.add_argument("training", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.fetch and options.no_wait:
        parser.error("--fetch needs the end of the job, which --no-wait does not wait for")
    return options


def prepare(options: argparse.Namespace) -> Job:
    """The job that the options ask for; ConfigError for whatever can be found wrong without a cluster."""
    not_empty(options, "--address", "--name")
    _check_numbers(options)
    training = parse_training(options.training)
    not_empty(training, "--config", "--resume")
    given = Path(training.config)
    if given != DEFAULT and (given.is_absolute() or not (ROOT / given).resolve().is_relative_to(ROOT)):
        raise ConfigError(f"--config {given} must be relative to {ROOT}, since that folder is uploaded; copy it there")
    config = load_config(ROOT / given, training.overrides)
    if not is_lasting(config.run.output_dir):
        raise ConfigError(
            f"run.output_dir={config.run.output_dir!r} is relative, and Ray deletes a job's working directory; "
            "add run.output_dir=/a/folder/that/all/nodes/share or a URL"
        )
    if any(map(holds_secret, [*training.overrides, training.resume or ""])):
        raise ConfigError("an argument holds a URL with a secret, which the dashboard would show; hand it by --env")
    if training.resume == "auto" and config.run.name is None:
        raise ConfigError("--resume auto goes on with the run of run.name, which is not set; set it, or give a folder")
    name = options.name or config.run.name or given.stem
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} may hold letters, digits, dots, dashes and underscores")
    job = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_folder = f"{config.run.output_dir.rstrip('/')}/{config.run.name or job}"
    if training.resume not in (None, "auto"):  # it goes on where it was: a run folder, or what is in its checkpoints/
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
    """ConfigError for a number that Ray would refuse after the upload, and a --fetch that would fail after the job."""
    if not 0 <= options.entrypoint_cpus < 2**31:
        raise ConfigError(f"--entrypoint-cpus {options.entrypoint_cpus} is no number of CPUs; give 0 or more")
    if not 0 < options.stop_wait < 2**31:
        raise ConfigError(f"--stop-wait {options.stop_wait} is no number of seconds; give 1 or more")
    if options.fetch is not None:
        there = next(folder for folder in (options.fetch, *options.fetch.absolute().parents) if folder.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise ConfigError(f"--fetch {options.fetch} cannot be made in {there}; give a folder that you can write")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id that the system has no name for, as in containers
        return "unknown"


def _variables(given: Sequence[str]) -> dict[str, str]:
    variables = dict(map(_variable, given))
    if len(variables) < len(given):
        raise ConfigError("--env names a variable twice; leave one")
    return variables


def _variable(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not VARIABLE.fullmatch(key):
        raise ConfigError("--env must be KEY or KEY=VALUE, where KEY is the name of a variable, as in HF_TOKEN")
    if not equals and key not in os.environ:
        raise ConfigError(f"--env {key} is not set here; export it, or give --env {key}=VALUE")
    return key, value if equals else os.environ[key]


def _commit() -> str:
    """The commit that is uploaded, with "-dirty" where files differ from it; "unknown" without git."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def resources(text: str) -> dict[str, float]:
    """The resources in a JSON object of numbers."""
    try:
        amounts = {key: float(value) for key, value in json.loads(text, object_pairs_hook=_each_once).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        amounts = {"": 0.0}
    if all(0 < amount < 2**31 for amount in amounts.values()):
        return amounts
    raise ConfigError(
        f"--entrypoint-resources {text!r} is no JSON object of numbers above 0, each name once; write "
        "'{\"driver\": 1}'"
    )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


@contextmanager
def cluster_errors(address: str) -> Iterator[None]:
    """Whatever a cluster answers with, as one error of one sentence."""
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
    except OSError as error:  # all errors of requests and aiohttp about connections are
        raise ResourceError(
            f"no answer from {address} ({first_line(error)}); --address must be a dashboard's"
        ) from None
    except Exception as error:  # RuntimeError and ValueError of Ray; KeyError and TypeError of another server's answer
        raise ResourceError(f"the cluster at {address} refused: {first_line(error)}") from None


def connect(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {address!r} must begin with http:// or https://, as in {LOCAL}")
    _check_answer(address)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS of this shell overrules what was asked for
    return JobSubmissionClient(address)


def _check_answer(address: str) -> None:
    """ConfigError or OSError unless a server answers there in time: Ray's own client waits for ever."""
    import requests

    try:
        requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S)
    except requests.exceptions.InvalidURL as error:
        raise ConfigError(f"--address {address!r} is no URL ({first_line(error)}); write it as {LOCAL}") from None


def submit(options: argparse.Namespace) -> int:
    job = prepare(options)
    named = resources(options.entrypoint_resources)
    logging.disable(logging.WARNING)  # of what Ray says on the way, nothing is of use here
    with cluster_errors(options.address):
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
        say(f"job {job.id}, run folder {job.run_folder}")
        say(f"dashboard: {options.address.rstrip('/')}/#/jobs/{job.id}")
        say(f"to stop it: ray job stop --address {options.address} {job.id}")
        if options.no_wait:
            return 0
        try:
            ended = asyncio.run(follow(client, job.id))
        except asyncio.CancelledError:
            say(f"left job {job.id} to the cluster, with what was asked of it")
            return 130
        say(f"job {job.id}: {ended.status.value}")
        if ended.status == "STOPPED":
            return 130
        if ended.status == "FAILED":
            if ended.driver_exit_code is None:  # its program never began
                raise ResourceError(f"the cluster did not start job {job.id}: {ended.message}")
            return ended.driver_exit_code if 0 < ended.driver_exit_code < 256 else 1
        if options.fetch:
            from fetch import fetch

            say(f"{options.fetch} has the results, {fetch(client, ended, job.run_folder, options.fetch)}")
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
