"""launch/submit.py before any cluster is asked: what it refuses, and what it knows of the job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adagrpo_ray.errors import ConfigError
from adagrpo_ray.storage import places as storage
from tests.support.scripts import script

TINY = "launch/configs/tiny-cpu.yaml"  # in the folder that is uploaded


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one error of launch/submit.py on these arguments, which exits with 2."""

    def run(*arguments: str) -> str:
        assert script("submit").main(list(arguments)) == 2
        output, errors = capsys.readouterr()
        assert errors.startswith("error: ")
        assert len(errors.splitlines()) == 1
        assert not output
        return errors

    return run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((f"--config={TINY}", "run.output_dir=/runs", "run.stps=3"), "did you mean 'run.steps'?"),
        ((f"--config={TINY}",), "run.output_dir='runs' is relative"),
        (("--config=/etc/passwd", "run.output_dir=/runs"), "--config /etc/passwd must be relative to"),
        (("run.output_dir=s3://user:password@host/runs",), "run.output_dir holds a user, a password or a query"),
        (("run.output_dir=/runs", "data.split=s3://user:password@host"), "an argument holds a URL with a secret"),
        (("run.output_dir=/runs", "--resume", "s3://bucket/run?token=1"), "an argument holds a URL with a secret"),
        (("run.output_dir=/runs", "--resume=auto"), "run.name, which is not set"),
    ],
)
def test_what_is_wrong_is_said_before_any_cluster_is_asked(
    refused: Callable[..., str], arguments: tuple[str, ...], told: str
) -> None:
    done = refused("--address", "http://127.0.0.1:9", "--", *arguments)
    assert told in done
    assert "127.0.0.1:9" not in done


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--env", "NOT_SET_ANYWHERE"), "--env NOT_SET_ANYWHERE is not set here"),
        (("--env", "=value"), "--env must be KEY or KEY=VALUE"),
        (("--entrypoint-resources", "[1]"), "--entrypoint-resources '[1]' is no JSON object of numbers"),
        (("--name", "a b"), "--name 'a b'"),
        (("--address", "127.0.0.1:8265"), "must begin with http://"),
        (("--address", "http://127.0.0.1:9"), "no answer from http://127.0.0.1:9"),
    ],
)
def test_options_that_cannot_work_are_one_error(
    refused: Callable[..., str], options: tuple[str, ...], told: str
) -> None:
    assert told in refused(*options, "--", "run.output_dir=/runs")


@pytest.mark.parametrize(
    ("training", "folder"),
    [
        (("run.output_dir=/runs", "run.name=one"), "/runs/one"),
        (("run.output_dir=s3://bucket/runs", "run.name=one", "--resume=auto"), "s3://bucket/runs/one"),
        (("run.output_dir=/runs", "--resume=/old/one/"), "/old/one"),
        (("run.output_dir=/runs", "--resume=/old/one/checkpoints/step-000012"), "/old/one"),
        (
            ("run.output_dir=/runs", "--resume=s3://bucket/checkpoints/one/checkpoints/best"),
            "s3://bucket/checkpoints/one",
        ),
    ],
)
def test_the_run_folder_of_a_job_is_known_beforehand(training: tuple[str, ...], folder: str) -> None:
    submit = script("submit")
    assert submit.prepare(submit.parse(["--", *training])).run_folder == folder


def test_results_come_from_a_url(tmp_path: Path) -> None:
    fetch, home = script("fetch").fetch, "memory://bucket/runs/fetched"
    for name in ("adapter/adapter_model.safetensors", "summary.json", "checkpoints/step-000001/state.json"):
        storage.leave(home, name, name)
    assert fetch(None, None, home, tmp_path / "got") == "from its URL"
    assert storage.below(tmp_path / "got") == ["adapter/adapter_model.safetensors", "summary.json"]
    with pytest.raises(ConfigError, match="Protocol not known: nosuch"):
        fetch(None, None, "nosuch://bucket/run", tmp_path / "got")
