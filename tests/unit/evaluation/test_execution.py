"""The order in which models and benchmarks are evaluated, and their files; rollouts and scores are invented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adagrpo_ray.config import Config
from adagrpo_ray.data.benchmark_prompts import BenchmarkPrompts
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.evaluation import execution
from adagrpo_ray.evaluation.execution import execute, finished, unfinished
from adagrpo_ray.evaluation.models import Candidate
from adagrpo_ray.evaluation.planning import Part, Plan
from adagrpo_ray.evaluation.results import ResultFile
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.rewards import Scores
from adagrpo_ray.rewards.consumption import Consumption
from adagrpo_ray.training.preflight import Inputs
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.builders import make_completion, make_prompt

ADAPTER = AdapterWeights(0, np.zeros(1, np.uint8), 8, 16.0, "d" * 64)


class Rollouts:
    """A fleet without actors, which records the versions that it gets and its requests."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.pool = SimpleNamespace(generate=self.generate, apply=self.apply)

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        self.seen.append(f"{request.prompt_id} x{request.n}")
        return (make_completion(text="Answer: B"),) * request.n

    async def apply(self, weights: AdapterWeights) -> None:
        self.seen.append(f"version {weights.version}")

    async def open(self) -> None: ...

    async def ready(self) -> None: ...

    async def close(self) -> None: ...

    def notices(self) -> tuple[str, ...]:
        return ()


class Scorer:
    """A scorer without processes, for which each completion is correct."""

    def __init__(self, *_: Any) -> None: ...

    async def score(self, prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        ones = np.ones(len(group), np.float32)
        return Scores(ones, ones[:, None]), ones > 0

    def consumption(self, purpose: str = "") -> dict[str, Consumption]:
        return {"helpful": Consumption(len(purpose), 10)}

    def notices(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None: ...


class Watched:
    """Records the models that begin."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def phase(self, text: str) -> None:
        self.begun.append(text)

    def model(self, name: str, finished: Sequence[float], problems: int) -> None:
        self.begun.append(f"{name}: {len(finished)} of {problems}")

    def problem(self, accuracy: float, tokens: int) -> None: ...


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> Rollouts:
    made = Rollouts()

    @contextmanager
    def connect(*_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(lines=lambda: ("nothing",))

    monkeypatch.setattr(execution, "Fleet", lambda *_: made)
    monkeypatch.setattr(execution, "RewardScorer", Scorer)
    monkeypatch.setattr(execution, "connect", connect)
    monkeypatch.setattr(execution, "put_model", lambda *_: None)
    return made


def planned(*names: str) -> Plan:
    """The base and an adapter, on benchmarks of two problems; a name of n letters has n completions of each."""
    benchmarks = tuple(
        BenchmarkPrompts("gsm8k", tuple(make_prompt(f"{name}/{i}") for i in "ab"), len(name), 2) for name in names
    )
    parts = tuple(
        Part(name, one.prompts, one.samples, {"name": name}) for name, one in zip(names, benchmarks, strict=True)
    )
    inputs = Inputs("tiny", PromptSets((), (), {}, benchmarks=benchmarks), 128)
    models = (Candidate("base", "b", "base", None), Candidate("mine", "m", ADAPTER.digest, ADAPTER))
    return Plan(Config(), inputs, parts, models)


def files_of(plan: Plan, out: Path) -> dict[str, ResultFile]:
    return {part.name: ResultFile(plan.folder(out, part), part.settings) for part in plan.parts}


def test_each_model_is_evaluated_on_all_benchmarks_before_the_next_one(tmp_path: Path, rollouts: Rollouts) -> None:
    plan, watched = planned("x", "yy"), Watched()
    files = files_of(plan, tmp_path)
    assert unfinished(plan, files) == 8
    execute(plan, files, watched, Event())
    assert rollouts.seen == [
        *("x/a x1", "x/b x1", "yy/a x2", "yy/b x2", "version 1"),
        *("x/a x1", "x/b x1", "yy/a x2", "yy/b x2"),
    ]
    assert watched.begun == [
        *("starting nothing", "base x: 0 of 2", "base yy: 0 of 2", "mine x: 0 of 2", "mine yy: 0 of 2")
    ]
    assert unfinished(plan, files) == 0
    (result, _) = finished(plan.parts[1], files, plan.models[1])
    assert (result.problem, len(result.completions), result.model) == ("yy/a", 2, ADAPTER.digest)
    assert result.judges["helpful"]["requests"] == len("yy/a"), "of the problem alone, which names the purpose"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jsonl")) == [
        "x/results.jsonl",
        "yy/results.jsonl",
    ]


def test_benchmark_that_is_added_leaves_the_finished_ones_alone(tmp_path: Path, rollouts: Rollouts) -> None:
    for names in (("x",), ("x", "z")):
        plan, watched = planned(*names), Watched()
        files = files_of(plan, tmp_path)
        rollouts.seen.clear()
        execute(plan, files, watched, Event())
        for file in files.values():
            file.__exit__()
    assert rollouts.seen == ["z/a x1", "z/b x1", "version 1", "z/a x1", "z/b x1"]
    assert watched.begun[1:] == ["base x: 2 of 2", "base z: 0 of 2", "mine x: 2 of 2", "mine z: 0 of 2"]


def test_nothing_is_started_if_all_results_are_there(tmp_path: Path, rollouts: Rollouts) -> None:
    plan, watched = planned("x"), Watched()
    files = files_of(plan, tmp_path)
    execute(plan, files, watched, Event())
    rollouts.seen.clear()
    again = Watched()
    execute(plan, files, again, Event())
    assert again.begun == [f"{tmp_path / 'x' / 'results.jsonl'} has all results already"]
    assert rollouts.seen == []
