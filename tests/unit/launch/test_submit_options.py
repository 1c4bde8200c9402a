"""launch/submit.py without a cluster: refused options, the run folder of a job, and results at a URL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adagrpo_ray.errors import ConfigError
from adagrpo_ray.storage import places as storage
from tests.support.places import TINY_IN_ROOT
from tests.support.scripts import script


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs launch/submit.py with these arguments: the only error. Checks that it exits with 2."""

    def run(*arguments: str) -> str:
        assert script("submit").main(list(arguments)) == 2
        output, errors = capsys.readouterr()
        assert errors.startswith("error: ")
        assert len(errors.splitlines()) == 1
        assert not output
        return errors

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((f"--config={TINY_IN_ROOT}", "run.output_dir=/runs", "run.stps=3"), "did you mean 'run.steps'?"),
        ((f"--config={TINY_IN_ROOT}",), "run.output_dir='runs' is relative"),
        (("--config=/etc/passwd", "run.output_dir=/runs"), "--config /etc/passwd must be relative to"),
        (("run.output_dir=s3://user:password@host/runs",), "run.output_dir holds a user, a password or a query"),
        (("run.output_dir=/runs", "data.split=s3://user:password@host"), "an argument holds a URL with a secret"),
        (("run.output_dir=/runs", "--resume", "s3://bucket/run?token=1"), "an argument holds a URL with a secret"),
        (("run.output_dir=/runs", "--resume=auto"), "run.name, which is not set"),
    ],
)
def test_invalid_settings_are_refused_before_a_request_to_the_cluster(
    refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    error = refused("--address", "http://127.0.0.1:9", "--", *arguments)
    assert message in error
    assert "127.0.0.1:9" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--env", "NOT_SET_ANYWHERE"), "--env NOT_SET_ANYWHERE is not set here"),
        (("--env", "=value"), "--env must be KEY or KEY=VALUE"),
        (("--entrypoint-resources", "[1]"), "--entrypoint-resources '[1]' is not a JSON object of numbers"),
        (("--name", "a b"), "--name 'a b'"),
        (("--address", "127.0.0.1:8265"), "must begin with http://"),
        (("--address", "http://127.0.0.1:9"), "no answer from http://127.0.0.1:9"),
    ],
)
def test_invalid_options_of_submit_are_one_error(
    refused: Callable[..., str], options: tuple[str, ...], message: str
) -> None:
    assert message in refused(*options, "--", "run.output_dir=/runs")


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
def test_run_folder_of_a_job_is_derived_from_its_settings(training: tuple[str, ...], folder: str) -> None:
    submit = script("submit")
    assert submit.prepare(submit.parse(["--", *training])).run_folder == folder


def test_fetch_copies_results_from_a_url(tmp_path: Path) -> None:
    fetch, home = script("fetch").fetch, "memory://bucket/runs/fetched"
    for name in ("adapter/adapter_model.safetensors", "summary.json", "checkpoints/step-000001/state.json"):
        storage.leave(home, name, name)
    assert fetch(None, None, home, tmp_path / "got") == "from its URL"
    assert storage.below(tmp_path / "got") == ["adapter/adapter_model.safetensors", "summary.json"]
    with pytest.raises(ConfigError, match="Protocol not known: nosuch"):
        fetch(None, None, "nosuch://bucket/run", tmp_path / "got")
