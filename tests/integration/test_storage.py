"""Runs that are kept at a URL, with the S3 API of moto's server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.checkpoint import kept
from adagrpo_ray.checkpoint.resume import find_past
from adagrpo_ray.config import Config
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.config.listing import as_yaml
from adagrpo_ray.errors import AdaGRPOError, CheckpointError, ConfigError, HistoryError, ResourceError
from adagrpo_ray.runs import EvaluationRecord, RunWriter
from adagrpo_ray.runs.history import sizes
from adagrpo_ray.runs.mirror import open_run
from adagrpo_ray.storage import places as storage
from adagrpo_ray.storage.cache import cache_folder
from tests.support.histories import SAMPLE, STEP
from tests.support.program import metrics, train

RECORD = EvaluationRecord(0, 0.5, {}, samples=2, failed=0, completions_mean_length=3.0, runtime=1.0)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket, with its address and credentials in the environment."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key-of-the-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "PAUSES_S", (0.0, 0.0))
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("runs-of-tests")
    yield "s3://runs-of-tests"
    system.rm("runs-of-tests", recursive=True)


def fail(monkeypatch: pytest.MonkeyPatch, part: str, times: int, why: str = "the network is down") -> None:
    """Make the next `times` uploads fail whose name has `part`."""
    import s3fs

    real, tried = s3fs.S3FileSystem._call_s3, []

    async def call(self: Any, method: str, *args: Any, Key: str = "", **kwargs: Any) -> Any:  # noqa: N803
        if method == "put_object" and part in Key:
            tried.append(Key)
            if len(tried) <= times:
                raise OSError(why)
        return await real(self, method, *args, **({"Key": Key} if Key else {}), **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)


def contents(value: float) -> dict[str, Any]:
    return {"state.json": {"value": value}, "arrays.safetensors": {"a": np.full(3, value)}}


def names(url: str) -> set[str]:
    return {name.partition("/")[0] for name in storage.files(url)}


@pytest.mark.parametrize("remote", [False, True])
def test_small_texts_are_written_read_and_removed(bucket: str, tmp_path: Path, remote: bool) -> None:
    folder = f"{bucket}/run" if remote else f"file://{tmp_path}/run"
    assert storage.find(folder, "a") is None
    storage.leave(folder, "a", "one")
    storage.leave(folder, "a", "two")
    assert storage.find(folder, "a") == "two"
    storage.clear(folder, "a")
    storage.clear(folder, "a")
    assert storage.find(folder, "a") is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://no-such-bucket/x", "bucket does not exist"),
        ("gs://bucket/x", "pip install gcsfs"),
        ("nonsense://bucket/x", "Protocol not known: nonsense"),
        ("s3://", "names no bucket"),
    ],
)
def test_error_names_unusable_url(bucket: str, monkeypatch: pytest.MonkeyPatch, url: str, message: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=message) as caught:
        storage.probe(url)
    assert str(caught.value).startswith(repr(url))


@pytest.mark.parametrize("url", ["gs://bucket/x", "nonsense://bucket/x", "memory://"])
def test_check_without_server_names_the_option(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(ConfigError) as caught:
        storage.check(url, "--out")
    assert str(caught.value).startswith(f"--out={url!r}")


def test_credentials_come_from_environment_and_are_never_shown(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match="credentials"):
        storage.probe(f"{bucket}/run")
    with pytest.raises(ConfigError, match="leave them to the environment") as caught:
        storage.probe("s3://me:secret@bucket/run")
    assert "secret" not in str(caught.value)
    fail(monkeypatch, "probe", times=3, why="no answer from 'https://host/bucket?sig=secret&x=1'")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match=r"no answer from 'https://host/bucket\?\.\.\.'"):
        storage.probe(f"{bucket}/run")


@pytest.mark.faults
def test_missing_server_is_found_at_start(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs and botocore also try again
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # so that no other program listens there meanwhile
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(ConfigError, match="'s3://runs-of-tests/run' cannot be used"):
            storage.probe(f"{bucket}/run")


def test_writer_copies_changed_files_and_keeps_no_local_copy(bucket: str) -> None:
    home = f"{bucket}/runs/one"
    with open_run(home, "a: 1\n", print) as writer:
        assert storage.find(home, "config.yaml") == "a: 1\n"
        writer.evaluation("before", RECORD)
        assert json.loads(storage.find(home, "evaluations.jsonl") or "")["accuracy"] == 0.5
        assert writer.home == home
        assert writer.folder.name == "one"
    assert not writer.folder.exists()
    assert names(home) == {"config.yaml", "metrics.jsonl", "evaluations.jsonl", "tensorboard"}
    with pytest.raises(ConfigError, match=r"run\.name='one': s3://runs-of-tests/runs/one exists already"):
        open_run(home, "a: 1\n", print)


@pytest.mark.faults
def test_failed_copy_is_repeated_and_last_copy_must_succeed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []
    writer = open_run(f"{bucket}/run", "", notices.append)
    fail(monkeypatch, "evaluations", times=4)
    writer.evaluation("before", RECORD)  # three tries
    assert storage.find(writer.home, "evaluations.jsonl") is None
    assert "the network is down" in notices[0]
    assert str(writer.folder) in notices[0]
    writer.evaluation("step 1", RECORD)  # a fourth, and one that succeeds
    assert len((storage.find(writer.home, "evaluations.jsonl") or "").splitlines()) == 2

    fail(monkeypatch, "tensorboard", times=10**6)
    with pytest.raises(ResourceError, match="the network is down"), writer:
        writer.evaluation("after", RECORD)
    assert len((writer.folder / "evaluations.jsonl").read_text().splitlines()) == 3


def lines_of(home: str, name: str) -> int:
    return len((storage.find(home, name) or "").splitlines())


def test_samples_are_copied_after_each_step_while_small(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = f"{bucket}/run"
    with open_run(home, "", print) as writer:
        for step in (1, 2):
            writer.step(replace(STEP, step=step))
            writer.samples([SAMPLE] * 20)
            assert (lines_of(home, "metrics.jsonl"), lines_of(home, "samples.jsonl")) == (step, 20 * step)
        monkeypatch.setattr("adagrpo_ray.runs.mirror.LARGE", 100)
        copied = []
        for step in (3, 4, 5, 6, 7):
            writer.step(replace(STEP, step=step))
            writer.samples([SAMPLE] * 3)
            copied.append((lines_of(home, "metrics.jsonl"), lines_of(home, "samples.jsonl")))
        assert copied == [(3, 40), (4, 46), (5, 46), (6, 52), (7, 52)]
    assert lines_of(home, "samples.jsonl") == 55


def test_checkpoints_are_saved_pruned_and_loaded(bucket: str) -> None:
    folder = f"{bucket}/run/checkpoints"
    for step in (1, 2, 3):
        kept.save(folder, step, contents(step), save_total_limit=2)
    assert names(folder) == {"latest", "step-000002", "step-000003"}
    assert storage.find(folder, "latest") == "step-000003\n"
    loaded = kept.load(f"{folder}/step-000002")
    assert loaded["state.json"] == {"value": 2}
    assert loaded["arrays.safetensors"]["a"].tolist() == [2.0, 2.0, 2.0]
    assert not list((cache_folder() / "scratch").iterdir())

    kept.set_latest(f"{folder}/step-000002")  # as if a run resumed from there
    kept.save(folder, 3, contents(30), save_total_limit=2)
    assert kept.load(f"{folder}/step-000003")["state.json"] == {"value": 30}
    storage.leave(f"{folder}/step-000003", "state.json", "{}")
    with pytest.raises(CheckpointError, match="damaged"):
        kept.load(f"{folder}/step-000003")


def test_best_checkpoint_is_kept_and_found(bucket: str) -> None:
    folder = f"{bucket}/runs/one/checkpoints"
    accuracies: dict[int, float] = {}
    for step, accuracy in ((1, 0.75), (2, 0.5), (3, 0.5)):
        accuracies[step] = accuracy
        kept.save(folder, step, contents(step), 1, accuracies)
        assert storage.find(folder, "best") == "step-000001\n"
    assert names(folder) == {"best", "latest", "step-000001", "step-000003"}
    assert kept.named(f"{folder}/best") == f"{folder}/step-000001"
    assert kept.named(f"{bucket}/runs/best") == f"{bucket}/runs/best"
    with pytest.raises(CheckpointError, match=r"state\.json"):  # it is one, if not of a run
        find_past(f"{folder}/best", settings(bucket), print)

    storage.leave(f"{folder}/step-000004", "state.json", "{}")  # never was whole
    kept.save(folder, 5, contents(5), 2, {**accuracies, 4: 1.0, 5: 1.0})
    assert names(folder) == {"best", "latest", "step-000003", "step-000005"}
    assert storage.find(folder, "best") == "step-000005\n"
    kept.save(folder, 6, contents(6), 1)
    assert names(folder) == {"latest", "step-000006"}


@pytest.mark.faults
@pytest.mark.parametrize("part", ["arrays", "checksums", "latest"])
def test_failed_upload_keeps_earlier_checkpoint(bucket: str, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    folder = f"{bucket}/run/checkpoints"
    kept.save(folder, 1, contents(1), save_total_limit=1)
    with monkeypatch.context() as patch:
        fail(patch, part, times=10**6)
        with pytest.raises(CheckpointError, match="the network is down"):
            kept.save(folder, 2, contents(2), save_total_limit=1)
    assert storage.find(folder, "latest") == "step-000001\n"
    assert kept.load(f"{folder}/step-000001")["state.json"] == {"value": 1}
    kept.save(folder, 2, contents(3), save_total_limit=1)
    assert names(folder) == {"latest", "step-000002"}
    assert kept.load(f"{folder}/step-000002")["state.json"] == {"value": 3}


def settings(bucket: str) -> Config:
    return Config.load(None, [f"run.output_dir={bucket}/runs", "run.name=one", "run.steps=4"])


def a_run(config: Config) -> tuple[str, RunWriter]:
    """Create a run without a step with two checkpoints, each after an evaluation; return its folder and writer."""
    home = storage.join(config.run.output_dir, "one")
    writer = open_run(home, "", print)
    for step in (1, 2):
        writer.evaluation(f"number {step}", RECORD)
        writer.samples([SAMPLE])
        progress = {"step": 0, "sizes": sizes(writer.folder)}
        state = {"state.json": {**progress, "settings": fixed_settings(config)}}
        kept.save(f"{home}/checkpoints", step, state, save_total_limit=2)
    return home, writer


def test_past_is_found_and_cut_at_its_mark(bucket: str) -> None:
    config, notices = settings(bucket), list[str]()
    home, writer = a_run(config)
    with writer:
        pass
    for where in ("auto", home, f"{home}/", f"{home}/checkpoints/step-000002"):
        past = find_past(where, config, notices.append)
        assert past.source == f"{home}/checkpoints/step-000002"
        assert len(past.evaluations) == 2
        assert notices.pop() == f"resuming after step 0, from {home}/checkpoints/step-000002"
    past = find_past(f"{home}/checkpoints/step-000001", config, notices.append)
    with past.writer(as_yaml(config), notices.append):
        assert storage.find(f"{home}/checkpoints", "latest") == "step-000001\n"
        assert (lines_of(home, "evaluations.jsonl"), lines_of(home, "samples.jsonl")) == (1, 1)


@pytest.mark.parametrize("fault", ["damaged", "half uploaded", "lines are missing"])
def test_bad_checkpoint_is_passed_over(bucket: str, fault: str) -> None:
    config, notices = settings(bucket), list[str]()
    home, _ = a_run(config)
    bad = f"{home}/checkpoints/step-000002"
    if fault == "damaged":
        storage.leave(bad, "state.json", "{}")
    elif fault == "half uploaded":
        storage.clear(bad, "checksums.json")
    else:
        lines = storage.find(home, "evaluations.jsonl") or ""
        storage.leave(home, "evaluations.jsonl", lines.splitlines(keepends=True)[0])
    past = find_past("auto", config, notices.append)
    assert past.source == f"{home}/checkpoints/step-000001"
    assert len(past.evaluations) == 1
    assert notices[0].startswith("passed over: ")
    assert (bad if fault != "lines are missing" else home) in notices[0]
    with pytest.raises(CheckpointError):
        find_past(bad, config, notices.append)
    storage.leave(f"{home}/checkpoints/step-000001", "state.json", "{}")
    with pytest.raises(CheckpointError, match=f"all 2 checkpoints in {home}/checkpoints are damaged"):
        find_past("auto", config, notices.append)


def test_run_of_older_version_is_refused_and_not_restarted(bucket: str) -> None:
    config, notices = settings(bucket), list[str]()
    home, _ = a_run(config)
    lines = storage.find(home, "evaluations.jsonl") or ""
    storage.leave(home, "evaluations.jsonl", lines.replace('"accuracy":', '"accurate":'))
    for where in ("auto", home):
        with pytest.raises(
            HistoryError, match=f"{home} was written by an older version .*no 'accuracy', but 'accurate'"
        ):
            find_past(where, config, notices.append)
    assert notices == []


def test_run_without_complete_checkpoint_starts_from_first_step(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, notices = settings(bucket), list[str]()
    home = f"{bucket}/runs/one"
    with pytest.raises(AdaGRPOError, match=f"{home} has no checkpoints"):
        find_past(home, config, notices.append)
    with monkeypatch.context() as patch:
        fail(patch, "checksums", times=10**6)
        with pytest.raises(CheckpointError):
            kept.save(f"{home}/checkpoints", 1, contents(1), save_total_limit=1)
    past = find_past("auto", config, notices.append)
    assert past.checkpoint is None
    assert notices == [f"no checkpoint in {home}: beginning with the first step"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_resumed_run_in_bucket_equals_uninterrupted_run_on_disk(
    bucket: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # the tiny model is in the cache of all tests
        patch.delenv("XDG_CACHE_HOME")
        model = cache_folder()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "adagrpo_ray").mkdir()
    for folder in model.glob("tiny-*"):
        (tmp_path / "cache" / "adagrpo_ray" / folder.name).symlink_to(folder)
    here = cache_folder()

    train(f"{bucket}/runs", 2)
    assert not list(here.glob("runs/*/*"))  # no local copy is left to resume from
    output = train(f"{bucket}/runs", 4, "--resume", "auto")

    home, back = f"{bucket}/runs/run", tmp_path / "back"
    assert f"resuming after step 2, from {home}/checkpoints/step-000002" in " ".join(output.split())
    back.mkdir()
    storage.pull(home, back, sorted(storage.files(home)))
    assert metrics(back) == metrics(whole)
    for file in ("adapter/adapter_model.safetensors", "samples.jsonl"):
        assert (back / file).read_bytes() == (whole / file).read_bytes()
    assert json.loads((back / "summary.json").read_text())["adapter"] == f"{home}/adapter"
    assert sorted(path.name for path in (back / "checkpoints").iterdir()) == ["latest", "step-000003", "step-000004"]
    assert checkpoint.newest(back / "checkpoints", print) == back / "checkpoints" / "step-000004"
    assert "of-the-test" not in output
