"""The learner on real DeepSpeed: stages and ranks change nothing, and log-probabilities are right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from adagrpo_ray.config import Config, load_config
from adagrpo_ray.learner.actor import LearnerActor
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.policy import Policy, pad
from adagrpo_ray.model.load import load_policy, resolve_model
from adagrpo_ray.types import TrainSample

STEPS = 3


def configure(*overrides: str) -> Config:
    return load_config(
        "launch/configs/tiny-cpu.yaml",
        [
            "learner.learning_rate=1e-4",
            "algorithm.loss.beta=0.04",
            "algorithm.updates=1",
            f"run.steps={STEPS}",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def model_path() -> str:
    return resolve_model(configure())


def make_samples(count: int = 13) -> tuple[TrainSample, ...]:
    """Completions of many lengths with random tokens; the first tokens are pads, which are tokens like others."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, count)
    total = int(lengths.sum())
    return tuple(
        TrainSample(
            prompt_token_ids=rng.integers(0, 100, rng.integers(3, 20)).astype(np.int32),
            token_ids=np.concatenate([[0], rng.integers(0, 100, length - 1)]).astype(np.int32),
            behaviour_logprobs=np.full(length, -4.0, np.float32),
            token_weights=np.full(length, 1 / total, np.float32),
            advantage=float(rng.normal()),
        )
        for length in lengths
    )


@pytest.fixture(scope="module")
def expected(model_path: str) -> list[Any]:
    """Loss and gradient norm of each step on one rank, stage 0, all samples in one micro-batch."""
    engine = LearnerEngine(model_path, configure(), 0, 1, ("127.0.0.1", 29541))
    batch = pack_batches(1, make_samples(), 1, 100_000)[0]
    assert len(batch.micro_batches) == 1
    return [engine.train(batch) for _ in range(STEPS)]


def test_the_steps_train(expected: list[Any]) -> None:
    assert len({r.sums["loss"] for r in expected}) == STEPS
    assert all(r.grad_norm > 0 for r in expected)
    assert expected[0].sums["kl"] == 0.0 < expected[-1].sums["kl"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stages_and_micro_batches_change_nothing(model_path: str, expected: list[Any], stage: int) -> None:
    engine = LearnerEngine(model_path, configure(f"learner.zero_stage={stage}"), 0, 1, ("127.0.0.1", 29541))
    batch = pack_batches(1, make_samples(), 1, 120)[0]
    assert len(batch.micro_batches) > 3
    for one in expected:
        other = engine.train(batch)
        assert other.sums == pytest.approx(one.sums, abs=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)


@pytest.mark.parametrize(("updates", "clipped"), [(1, False), (3, True)])
def test_later_updates_of_a_batch_are_held_by_the_clip_range(model_path: str, updates: int, clipped: bool) -> None:
    """The old policy is the one before the first update: only against that one can a ratio leave the range."""
    config = configure(f"algorithm.updates={updates}", "learner.learning_rate=0.01", "learner.schedule=linear")
    engine = LearnerEngine(model_path, config, 0, 1, ("127.0.0.1", 29541))
    batch = pack_batches(1, make_samples(), 1, 200)[0]
    report = engine.train(batch)
    assert (report.sums["clipped"] > 0) is clipped
    # The schedule counts updates: of 3 x STEPS the last one of this batch is the third.
    assert report.learning_rate == pytest.approx(0.01 * (1 - (updates - 1) / (updates * STEPS)))
    nothing = engine.train(replace(batch, micro_batches=()))
    assert nothing.sums == dict.fromkeys(report.sums, 0.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.usefixtures("cluster")
def test_two_ranks_train_like_one(model_path: str, expected: list[Any], stage: int) -> None:
    config = configure("learner.ranks=2", f"learner.zero_stage={stage}")
    ranks = [ray.remote(LearnerActor).remote() for _ in range(2)]
    master = ray.get(ranks[0].address.remote())
    ray.get([actor.start.remote(config, rank, model_path, master) for rank, actor in enumerate(ranks)])
    batches = pack_batches(1, make_samples(), 2, 120)
    for one in expected:
        reports = ray.get([rank.train.remote(batch) for rank, batch in zip(ranks, batches, strict=True)])
        assert sum(r.sums["loss"] for r in reports) == pytest.approx(one.sums["loss"], abs=1e-4)
        assert reports[0].grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
    for rank in ranks:
        ray.kill(rank)


def test_logprobs_are_those_of_a_plain_forward_pass(model_path: str) -> None:
    """Against Transformers' own logits, one sequence at a time, without padding."""
    policy = Policy(load_policy(model_path, configure())).eval()
    samples = make_samples(5)
    with torch.no_grad():
        together = policy(pad(samples, torch.device("cpu")))
        alone = []
        for sample in samples:
            ids = torch.from_numpy(np.concatenate([sample.prompt_token_ids, sample.token_ids])).long()
            logprobs = policy.peft_model(input_ids=ids[None]).logits[0].log_softmax(-1)
            start = len(sample.prompt_token_ids)
            alone.append(logprobs[start - 1 : -1].gather(-1, ids[start:, None]).squeeze(-1))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_the_reference_is_the_model_without_its_adapter(model_path: str) -> None:
    policy = Policy(load_policy(model_path, configure()))
    padded = pad(make_samples(2), torch.device("cpu"))
    with torch.no_grad():
        base = policy(padded)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
        moved = policy(padded)
    with policy.reference():
        reference = policy(padded)
    assert (moved - base).abs().max() > 1e-3
    torch.testing.assert_close(reference, base)
    assert policy.training


def test_an_empty_step_changes_nothing(model_path: str) -> None:
    engine = LearnerEngine(model_path, configure(), 0, 1, ("127.0.0.1", 29541))
    before = engine.adapter()
    report = engine.train(pack_batches(1, (), 1, 120)[0])
    assert (report.sums["loss"], report.grad_norm) == (0.0, 0.0)
    after = engine.adapter()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_of_zero_add_nothing(model_path: str, expected: list[Any]) -> None:
    """What idle ranks get must not change the gradient."""
    engine = LearnerEngine(model_path, configure(), 0, 1, ("127.0.0.1", 29541))
    samples = make_samples()
    idle = replace(samples[0], token_weights=np.zeros_like(samples[0].token_weights))
    report = engine.train(pack_batches(1, (*samples, idle), 1, 100_000)[0])
    assert report.sums["loss"] == pytest.approx(expected[0].sums["loss"], abs=1e-6)
    assert report.grad_norm == pytest.approx(expected[0].grad_norm, rel=1e-5)
