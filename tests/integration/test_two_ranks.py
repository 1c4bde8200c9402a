"""Two learner ranks on real DeepSpeed give the same result as one rank.

Each rank is an actor. Both are started once, and each test begins its runs in them, like the runs of a notebook.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from adagrpo_ray.algorithm.update_statistics import UpdateStatistics
from adagrpo_ray.config import Config
from adagrpo_ray.learner import buffers
from adagrpo_ray.learner.actor import LearnerActor
from adagrpo_ray.learner.engine_state import EngineState
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.updates import TrainReport, UpdateReport
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.types import TrainBatch
from tests.support.batches import FAULTS, PARTS, bad, equal_batches, good, make_samples
from tests.support.engine_states import (
    BETA1,
    assert_same_gradient,
    bytes_of,
    gradient_of,
    made,
    one_rank,
    same,
    through_disk,
    updates_of_one_rank,
)
from tests.support.places import TINY

pytestmark = pytest.mark.long

STEPS = 3
CHUNK = 139 * 7  # logits of 7 tokens of the tiny model, so that one rank has more chunks than the other


@dataclass(frozen=True)
class Ranks:
    """Both actors, called together."""

    actors: Sequence[Any]
    master: tuple[str, int]
    model: ModelFiles
    in_new_processes: Callable[[], Ranks]

    def kill(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def start(self, config: Config, chunk: int = buffers.LOGITS) -> None:
        """Begin a run with at most so many logits at a time."""
        self._all("start_with", chunk, config, [0, 1], self.model, self.master)

    def train(self, batches: Sequence[TrainBatch]) -> list[TrainReport]:
        return self._all("train", list(batches))

    def snapshot(self) -> EngineState:
        state, nothing = self._all("snapshot")
        assert nothing is None
        return state  # type: ignore[no-any-return]

    def restore(self, state: EngineState) -> None:
        self._all("restore", state)

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        """The replies of both; each rank gets its own item of an argument that is a list."""
        calls = []
        for rank, actor in enumerate(self.actors):
            own = [argument[rank] if isinstance(argument, list) else argument for argument in arguments]
            calls.append(getattr(actor, method).remote(*own))
        return ray.get(calls)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def ranks(model_path: str) -> Iterator[Ranks]:
    class Rank(LearnerActor):
        def start_with(self, chunk: int, *arguments: Any) -> None:
            buffers.LOGITS = chunk
            self.start(*arguments)

        def snapshot(self) -> EngineState | None:
            return self._engine.snapshot()

        def restore(self, state: EngineState) -> None:
            self._engine.restore(state)

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def begin() -> Ranks:
        actors = [ray.remote(Rank).remote() for _ in range(2)]
        return Ranks(actors, ray.get(actors[0].address.remote()), ModelFiles(model_path), begin)

    yield begin()
    ray.shutdown()


def configure(*overrides: str) -> Config:
    return Config.load(
        TINY,
        [
            "algorithm.num_iterations=1",
            "algorithm.num_mini_batches=1",
            f"run.steps={STEPS}",
            "learner.ranks=2",
            *overrides,
        ],
    )


def config_of_training(ranks: int, stage: int = 0) -> Config:
    settings = ("learner.learning_rate=1e-4", "algorithm.loss.beta=0.04", f"learner.zero_stage={stage}")
    return configure(*settings, f"learner.ranks={ranks}")


@pytest.fixture(scope="module")
def expected(model_path: str) -> list[UpdateReport]:
    """Loss and gradient norm of each step on one rank, stage 0, all samples in one micro-batch."""
    return updates_of_one_rank(model_path, config_of_training(1))


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_two_ranks_train_config_of_training(ranks: Ranks, expected: list[UpdateReport], stage: int) -> None:
    ranks.start(config_of_training(2, stage), CHUNK)
    batches = pack_batches(1, make_samples(), 2, 120)
    tokens = [[sum(len(s.token_ids) for s in micro) for micro in batch.micro_batches] for batch in batches]
    assert any(-(-one // 7) != -(-other // 7) for one, other in zip(*tokens, strict=True))
    for step, one in enumerate(expected, start=1):
        reports = [made(report) for report in ranks.train([replace(batch, step=step) for batch in batches])]
        merged = functools.reduce(UpdateStatistics.merged, (r.statistics for r in reports))
        assert merged.loss == pytest.approx(one.statistics.loss, abs=1e-4)
        assert merged.tokens == one.statistics.tokens == sum(len(s.token_ids) for s in make_samples())
        assert merged.entropy.mean == pytest.approx(one.statistics.entropy.mean, rel=1e-4)
        by_difficulty = {
            difficulty: aggregate.mean for difficulty, aggregate in one.statistics.entropy_by_difficulty.items()
        }
        assert set(by_difficulty) == {"easy", "hard", ""}
        assert merged.metrics()["entropy_by_difficulty"] == pytest.approx(by_difficulty, rel=1e-4)
        assert reports[0].grad_norm == pytest.approx(one.grad_norm, rel=1e-3)


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 2)), 3])
def test_two_restored_ranks_train_identically(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    """With dropout, so that the random states of both ranks count, and a schedule that changes at every step."""
    config = configure(
        "run.steps=4",
        "model.lora.dropout=0.1",
        "learner.learning_rate=1e-3",
        "learner.weight_decay=0.01",
        "learner.schedule=cosine",
        "learner.warmup_ratio=0.5",
        f"learner.zero_stage={stage}",
    )
    second, third = (pack_batches(step, make_samples(6), 2, 80) for step in (2, 3))
    ranks.start(config)
    ranks.train(second)
    state = through_disk(ranks.snapshot(), tmp_path)
    assert {"cpu.0", "cpu.1"} <= state.random.keys()
    expected, end = ranks.train(third), ranks.snapshot()
    others = ranks.in_new_processes()
    others.start(config)
    assert not same(others.snapshot(), state)
    others.restore(state)
    assert same(others.snapshot(), state)
    assert others.train(third) == expected
    assert same(others.snapshot(), end)
    others.kill()


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 3)), 2])
def test_a_fault_on_one_rank_skips_the_update_on_all(ranks: Ranks, stage: int) -> None:
    config = configure(
        "run.steps=8",
        "model.dtype=bfloat16",
        "learner.learning_rate=1e-3",
        "learner.warmup_ratio=0.0",
        "learner.schedule=linear",
        "algorithm.loss.beta=0.04",
        f"learner.zero_stage={stage}",
    )
    ranks.start(config)
    ranks.train(good(1, 2))
    before = bytes_of(ranks.snapshot())
    fault, cause = FAULTS["NaN behaviour"]
    batches = bad(2, 2, **fault)
    finite = [all(np.isfinite(s.behaviour_logprobs).all() for m in b.micro_batches for s in m) for b in batches]
    assert finite == [True, False]
    reports = ranks.train(batches)
    assert [(r.skipped, r.cause, r.skipped_in_a_row, r.last) for r in reports] == [(1, cause, 1, None)] * 2
    assert bytes_of(ranks.snapshot()) == before
    after, end = ranks.train(good(3, 2)), bytes_of(ranks.snapshot())
    ranks.start(config)
    ranks.train(good(1, 2))
    assert ranks.train(good(3, 2)) == after
    assert bytes_of(ranks.snapshot()) == end != before


def config_of_gradients(ranks: int, stage: int = 0) -> Config:
    return configure(
        "run.steps=4",
        "model.dtype=bfloat16",
        "learner.learning_rate=1e-4",
        "learner.warmup_ratio=0.0",
        "learner.max_grad_norm=1e6",
        f"learner.betas=[{BETA1},0.999]",
        "algorithm.loss.beta=0.0",
        f"learner.zero_stage={stage}",
        f"learner.ranks={ranks}",
    )


def test_two_ranks_make_the_updates_of_one_on_mini_batches(ranks: Ranks, model_path: str) -> None:
    (batch,) = pack_batches(1, make_samples(), 1, 100_000, mini_batches=2)
    one = made(one_rank(model_path, config_of_training(1)).train(batch))
    ranks.start(config_of_training(2, 2))
    reports = [made(report) for report in ranks.train(pack_batches(1, make_samples(), 2, 120, mini_batches=2))]
    merged = functools.reduce(UpdateStatistics.merged, (report.statistics for report in reports))
    assert merged.loss == pytest.approx(one.statistics.loss, abs=1e-4)
    assert merged.tokens == one.statistics.tokens
    assert [report.grad_norm for report in reports] == pytest.approx([one.grad_norm] * 2, rel=1e-3)


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_many_micro_batches_on_two_ranks_give_the_gradient_of_one(ranks: Ranks, model_path: str, stage: int) -> None:
    engine = one_rank(model_path, config_of_gradients(1))
    engine.train(equal_batches(1)[0])
    ranks.start(config_of_gradients(2, stage))
    ranks.train(equal_batches(2 * PARTS, 2))
    assert_same_gradient(gradient_of(ranks.snapshot()), gradient_of(engine.snapshot()))
