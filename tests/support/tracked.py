"""Writes a run folder with trackers but without training, and reads W&B's offline files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.config.listing import as_yaml
from adagrpo_ray.runs import EvaluationRecord, GroupSample, Observers, RunWriter, StepRecord, summarize
from adagrpo_ray.runs.history import Mark
from adagrpo_ray.runs.samples import AttemptSample, CompletionSample
from adagrpo_ray.tracking import tracked
from adagrpo_ray.types import SamplingParams
from tests.support.histories import BEFORE, SAMPLE, STEP

BLOCK, HEADER = 32768, 7


def config(*overrides: str) -> Config:
    return Config.load("launch/configs/tiny-cpu.yaml", ["run.steps=6", *overrides])


def step(number: int) -> StepRecord:
    return replace(STEP, step=number, reward=number / 16, weight_version=number)


def evaluated(number: int) -> EvaluationRecord:
    return replace(BEFORE, step=number, accuracy=number / 8)


def sample(number: int) -> GroupSample:
    completion = CompletionSample(f"it is {number}", 3, "stop", 0, 1.0, {"exact": 1.0}, True, None)
    return replace(SAMPLE, step=number, attempts=(AttemptSample(-1, SamplingParams(), (completion,)),))


def track(
    settings: Config,
    folder: Path,
    steps: Sequence[int],
    *,
    mark: Mark | None = None,
    notify: Callable[[str], None] = lambda text: None,
    end: BaseException | None = None,
    between: Callable[[int], None] = lambda number: None,
) -> None:
    """Write these steps, after `mark` if it is given, with evaluations before the first and after every second one.

    mark: resume the folder there.
    end: the exception that ends the run; None if it finishes.
    between: called after each step with its number.
    """
    with (
        nullcontext() if end is None else pytest.raises(type(end)),
        RunWriter(folder, as_yaml(settings), mark) as writer,
        tracked(settings, folder, notify, mark is not None) as trackers,
    ):
        observer = Observers(writer, trackers)
        if mark is None:
            observer.evaluation("before", evaluated(0))
        for number in steps:
            observer.step(step(number))
            observer.samples([sample(number)])
            if number % 2 == 0:
                observer.evaluation(f"step {number}", evaluated(number))
            between(number)
        if end is not None:
            raise end
        adapter = folder / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_model.safetensors").write_bytes(b"weights")
        done = [step(number) for number in steps]
        observer.summary(summarize(done, None, None, name="run", folder=folder, adapter=adapter))


@dataclass
class OfflineRun:
    """The content of a .wandb file: the run's settings, a row of its history for each step, and its exit code."""

    id: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    exit_code: int | None = None


def offline_run(folder: Path) -> OfflineRun:
    """Read the only offline run in a run folder."""
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    run = OfflineRun()
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name, run.tags = record.run.run_id, record.run.display_name, tuple(record.run.tags)
            run.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            run.rows.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            run.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "artifact" and record.artifact.type == "model":
            run.artifacts += [entry.path for entry in record.artifact.manifest.contents]
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _key(item: Any) -> str:
    return "/".join(item.nested_key) or str(item.key)


def _records(path: Path) -> Iterator[Any]:
    """Read W&B's records, which are in LevelDB's log format: blocks of fragments with checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last fragment
            yield Record.FromString(parts)
            parts = b""
