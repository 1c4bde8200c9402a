"""The learner on real DeepSpeed: stages do not change the update, and log-probabilities are correct."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adagrpo_ray.config import Config
from adagrpo_ray.config.learner import Packing
from adagrpo_ray.errors import ModelError
from adagrpo_ray.learner import buffers
from adagrpo_ray.learner.layout import LAYOUTS, Rows, join, pad, share
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.attention import SDPA, use_packing
from adagrpo_ray.model.own_attention import attention_of
from adagrpo_ray.types import TrainSample
from tests.support.batches import make_samples
from tests.support.builders import flat
from tests.support.engine_states import made, one_rank, updates_of_one_rank

STEPS = 3
VOCABULARY = 139  # of the tiny model
CPU = torch.device("cpu")


def configure(*overrides: str) -> Config:
    return Config.load(
        "launch/configs/tiny-cpu.yaml",
        [
            "learner.learning_rate=1e-4",
            "algorithm.loss.beta=0.04",
            "algorithm.num_iterations=1",
            "algorithm.num_mini_batches=1",
            f"run.steps={STEPS}",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def expected(model_path: str) -> list[Any]:
    """Loss and gradient norm of each step on one rank, stage 0, all samples in one micro-batch."""
    return updates_of_one_rank(model_path, configure())


def test_steps_change_the_policy(expected: list[Any]) -> None:
    assert len({r.statistics.loss for r in expected}) == STEPS
    assert all(r.grad_norm > 0 for r in expected)
    assert expected[0].statistics.kl.total == 0.0 < expected[-1].statistics.kl.total


def test_deepspeed_probes_none_of_its_operators(expected: list[Any]) -> None:
    """The probe runs a compiler and queries the device. The steps before this test have joined the process group."""
    import deepspeed

    assert deepspeed.ops.__compatible_ops__ == {}


@pytest.mark.parametrize(
    "settings",
    [
        *[[f"zero_stage={stage}"] for stage in range(4)],
        ["zero_stage=2", "offload_optimizer=true"],
        *(pytest.param([f"zero_stage={stage}", "offload_optimizer=true"], marks=pytest.mark.slow) for stage in (1, 3)),
        *[[f"packing={packing}"] for packing in get_args(Packing)],
        ["packing=packed", "zero_stage=3"],
        ["packing=shared", "zero_stage=3"],
        ["packing=shared", "gradient_checkpointing=true"],
        ["gradient_checkpointing=true"],
        ["packing=packed", "gradient_checkpointing=true", "zero_stage=2", "offload_optimizer=true"],
    ],
    ids=",".join,
)
def test_micro_batches_stages_and_checkpointing_do_not_change_the_update(
    model_path: str, expected: list[Any], settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "LOGITS", VOCABULARY * 7)  # many chunks
    config = configure(*[f"learner.{setting}" for setting in settings])
    engine = one_rank(model_path, config)
    assert engine.packing == {s.partition("=")[0]: s.partition("=")[2] for s in settings}.get("packing", "shared")
    batch = pack_batches(1, make_samples(), 1, 80, engine.packing)[0]
    assert len(batch.micro_batches) > 3
    for step, one in enumerate(expected, start=1):
        other = made(engine.train(replace(batch, step=step)))
        assert other.statistics.loss == pytest.approx(one.statistics.loss, abs=1e-5)
        assert flat(other.statistics) == pytest.approx(flat(one.statistics), rel=1e-5, abs=1e-3)  # sums over tokens
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)


@pytest.mark.parametrize(("updates", "clipped"), [(1, False), (3, True)])
def test_the_clip_range_bounds_later_updates_of_a_batch(model_path: str, updates: int, clipped: bool) -> None:
    """The old policy is that before the first update: only against it can a ratio leave the clip range."""
    config = configure(f"algorithm.num_iterations={updates}", "learner.learning_rate=0.01", "learner.schedule=linear")
    engine = one_rank(model_path, config)
    batch = pack_batches(1, make_samples(), 1, 200, passes=updates)[0]
    report = engine.train(batch)
    assert report.first is not None
    first, last = report.first.statistics, made(report).statistics
    assert (first.ratio.minimum, first.ratio.maximum) == (1.0, 1.0)
    assert (last.clipped_low + last.clipped_high > 0) is clipped
    # The schedule counts updates: of 3 x STEPS the last one of this batch is the third.
    assert report.learning_rate == pytest.approx(0.01 * (1 - (updates - 1) / (updates * STEPS)))
    nothing = engine.train(replace(batch, mini_batches=()))
    assert (nothing.first, nothing.last, nothing.skipped) == (None, None, 0)


def test_mini_batches_are_updates_one_after_the_other(model_path: str) -> None:
    """Two mini-batches change the policy as two batches of their samples do; each has an old policy of its own."""
    config = configure("algorithm.num_mini_batches=2", "learner.learning_rate=0.01", "learner.schedule=constant")
    samples = make_samples()
    (batch,) = pack_batches(1, samples, 1, 200, mini_batches=2)
    assert len(batch.mini_batches) == 2
    together, apart = (one_rank(model_path, config) for _ in range(2))
    report = together.train(batch)
    reports = [made(apart.train(replace(batch, mini_batches=(part,)))) for part in batch.mini_batches]
    after, expected = together.adapter(), apart.adapter()
    assert all(torch.equal(after[name], expected[name]) for name in after)
    assert report.first is not None
    assert (report.first.statistics.ratio.minimum, report.first.statistics.ratio.maximum) == (1.0, 1.0)
    assert report.first.statistics.loss == pytest.approx(sum(r.statistics.loss for r in reports) / 2)
    assert report.first.statistics.tokens == sum(len(sample.token_ids) for sample in samples)


@pytest.mark.parametrize("lay_out", [pad, join])
def test_logprobs_are_those_of_a_plain_forward_pass(model_path: str, lay_out: Callable[..., Rows]) -> None:
    """Compare with Transformers' own logits, one sequence at a time, without padding."""
    policy = Policy(load_policy(model_path, configure())).eval()
    samples = make_samples(5)
    with torch.no_grad():
        together = policy(lay_out(samples, CPU))[0]
        alone = []
        for sample in samples:
            ids = torch.from_numpy(np.concatenate([sample.prompt_token_ids, sample.token_ids])).long()
            logprobs = policy.peft_model(input_ids=ids[None]).logits[0].log_softmax(-1)
            start = len(sample.prompt_token_ids)
            alone.append(logprobs[start - 1 : -1].gather(-1, ids[start:, None]).squeeze(-1))
    # A log-probability of -16 is a difference of logits that float32 rounds by 2e-6 each; 1.5e-5 was measured there.
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("lay_out", [pad, join])
def test_entropies_are_those_of_a_plain_forward_pass(model_path: str, lay_out: Callable[..., Rows]) -> None:
    policy = Policy(load_policy(model_path, configure())).eval()
    samples = make_samples(5)
    with torch.no_grad():
        together = policy(lay_out(samples, CPU))[1]
        alone = []
        for sample in samples:
            ids = torch.from_numpy(np.concatenate([sample.prompt_token_ids, sample.token_ids])).long()
            logits = policy.peft_model(input_ids=ids[None]).logits[0, len(sample.prompt_token_ids) - 1 : -1]
            alone.append(torch.distributions.Categorical(logits=logits).entropy())
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_an_entropy_bonus_raises_the_entropy(model_path: str) -> None:
    """With advantages of zero and no KL term, only the bonus trains."""
    config = configure("algorithm.loss.beta=0", "algorithm.loss.entropy_coef=1", "learner.learning_rate=0.01")
    engine = one_rank(model_path, config)
    batch = pack_batches(1, tuple(replace(s, advantage=0.0) for s in make_samples()), 1, 120)[0]
    first, *_, last = [made(engine.train(replace(batch, step=step))) for step in range(1, STEPS + 1)]
    assert first.grad_norm > 0
    assert first.statistics.loss == pytest.approx(-first.statistics.entropy.mean, rel=1e-4)
    assert last.statistics.entropy.mean > first.statistics.entropy.mean + 0.01


def moved_policy(model_path: str, *overrides: str) -> Policy:
    """A policy whose adapter has an effect, so that both of its matrices have gradients."""
    config = configure(*overrides)
    policy = Policy(load_policy(model_path, config))
    use_packing(policy.peft_model.get_base_model(), config.learner.packing, config.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=generator)
    return policy


def episodes(count: int = 7) -> tuple[TrainSample, ...]:
    """Samples of which each third token was observed."""
    return tuple(
        replace(
            sample,
            observed=observed,
            token_weights=np.where(observed, 0, sample.token_weights).astype(np.float32),
            behaviour_logprobs=np.where(observed, 0, sample.behaviour_logprobs).astype(np.float32),
        )
        for sample in make_samples(count)
        for observed in [np.arange(len(sample.token_ids)) % 3 == 1]
    )


@pytest.mark.parametrize("packing", get_args(Packing))
def test_observed_tokens_are_read_and_not_trained_on(model_path: str, packing: Packing) -> None:
    """Log-probabilities are those of the same tokens without a mask, and the update has no others."""
    engine = one_rank(model_path, configure(f"learner.packing={packing}"))
    samples = episodes()
    masked = engine.logprobs(samples)
    whole = engine.logprobs(tuple(replace(sample, observed=None) for sample in samples))
    for sample, some, every in zip(samples, masked, whole, strict=True):
        np.testing.assert_allclose(some, sample.written(every), atol=1e-5)
    update = made(engine.train(pack_batches(1, samples, 1, 120, packing)[0]))
    assert update.statistics.tokens == sum(sample.policy_tokens for sample in samples)
    assert update.grad_norm > 0


def test_update_does_not_depend_on_values_at_observed_tokens(model_path: str) -> None:
    found = []
    for value in (0.0, -50.0):
        samples = tuple(
            replace(s, behaviour_logprobs=np.where(s.observed, value, s.behaviour_logprobs).astype(np.float32))
            for s in episodes()
            if s.observed is not None
        )
        engine = one_rank(model_path, configure("algorithm.loss.kind=gspo", "algorithm.loss.correction=sequence"))
        found.append(made(engine.train(pack_batches(1, samples, 1, 120, engine.packing)[0])))
    assert found[0] == found[1]


@pytest.mark.parametrize("packing", ["packed", "shared"])
def test_packed_and_shared_rows_equal_padded_rows(model_path: str, packing: Packing) -> None:
    one_row, rows = (moved_policy(model_path, f"learner.packing={name}") for name in (packing, "padded"))
    samples = make_samples(7)
    weights = torch.randn(sum(len(s.token_ids) for s in samples), generator=torch.Generator().manual_seed(0))
    found = []
    for policy, name in ((rows, "padded"), (one_row, packing)):
        logprobs = policy(LAYOUTS[name](samples, CPU))[0]
        parameters = [p for p in policy.parameters() if p.requires_grad]
        found.append((logprobs.detach(), torch.autograd.grad((weights * logprobs).sum(), parameters)))
    (expected, gradients), (got, others) = found
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packing", ["packed", "shared"])
def test_samples_of_a_row_do_not_see_each_other(model_path: str, packing: Packing) -> None:
    policy, lay_out = moved_policy(model_path, f"learner.packing={packing}"), LAYOUTS[packing]
    _, sample, *others = make_samples(8)  # of which one has its prompt
    with torch.no_grad():
        alone = policy(lay_out([sample], CPU))[0]
        for before in range(len(others) + 1):
            row = [*others[:before], sample, *others[before:]]
            start = sum(len(s.token_ids) for s in row[:before])
            beside = policy(lay_out(row, CPU))[0][start : start + len(sample.token_ids)]
            torch.testing.assert_close(beside, alone, rtol=0, atol=1e-5)


class LargestLogits(TorchDispatchMode):
    """The most rows of a tensor of [rows x vocabulary] that an operation returned, apart from the weights."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.rows, self._weights = 0, weights.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            logits = isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (VOCABULARY,)
            if logits and tensor.untyped_storage().data_ptr() != self._weights:
                self.rows = max(self.rows, tensor.numel() // VOCABULARY)
        return result


@pytest.mark.parametrize("lay_out", [pad, join, share])
def test_logits_never_exist_for_more_tokens_than_a_chunk(
    model_path: str, lay_out: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "LOGITS", VOCABULARY * 8 - 1)
    policy = moved_policy(model_path)
    rows = lay_out(make_samples(7), CPU)
    assert len(rows.targets) > 50
    head = policy.peft_model.get_base_model().get_output_embeddings().weight
    with LargestLogits(head) as forward:
        logprobs = policy(rows)[0]
    with LargestLogits(head) as backward:
        logprobs.sum().backward()
    with LargestLogits(head) as reference, policy.reference():
        policy(rows)
    assert forward.rows == backward.rows == reference.rows == 7


def test_a_chunk_has_at_least_one_token() -> None:
    assert (buffers.chunk_tokens(2**26 + 1), buffers.chunk_tokens(2**26), buffers.chunk_tokens(2**25)) == (1, 1, 2)


def test_a_sample_without_tokens_has_no_logprobs(model_path: str) -> None:
    empty = replace(make_samples(1)[0], token_ids=np.zeros(0, np.int32))
    for lay_out in (pad, join, share):
        assert [t.shape for t in moved_policy(model_path)(lay_out([empty], CPU))] == [(0,), (0,)]


def test_a_model_whose_layers_have_a_state_is_not_packed(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.Qwen3ForCausalLM._is_stateful", True)
    with pytest.raises(ModelError, match=r"\(qwen3\) has layers with a state.*set learner\.packing=padded"):
        one_rank(model_path, configure("learner.packing=packed"))
    with pytest.raises(
        ModelError, match=r"\(qwen3\) has layers that cannot share a prompt; set learner\.packing=padded"
    ):
        one_rank(model_path, configure("learner.packing=shared"))
    assert one_rank(model_path, configure()).packing == "padded"


def test_a_model_that_shares_prompts_wrongly_gets_padded_rows_by_default(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backwards(samples: Sequence[TrainSample], device: torch.device) -> Rows:
        return share(samples[::-1], device)

    monkeypatch.setitem(LAYOUTS, "shared", backwards)
    engine = one_rank(model_path, configure())
    assert engine.packing == "padded"
    assert attention_of(engine._policy.peft_model.get_base_model()) == SDPA
    with pytest.raises(ModelError, match=r"differ from .*; set learner\.packing=padded"):
        one_rank(model_path, configure("learner.packing=shared"))


def test_the_reference_is_the_model_without_its_adapter(model_path: str) -> None:
    policy = Policy(load_policy(model_path, configure()))
    rows = pad(make_samples(2), CPU)
    with torch.no_grad():
        base = policy(rows)[0]
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
        moved = policy(rows)[0]
    with policy.reference():
        reference = policy(rows)[0]
    assert (moved - base).abs().max() > 1e-3
    torch.testing.assert_close(reference, base)
    assert policy.training


def test_an_empty_step_changes_nothing(model_path: str) -> None:
    engine = one_rank(model_path, configure())
    before = engine.adapter()
    report = engine.train(pack_batches(1, (), 1, 120)[0])
    assert (report.first, report.last) == (None, None)
    after = engine.adapter()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_of_zero_add_nothing(model_path: str, expected: list[Any]) -> None:
    """The copies that idle ranks get must not change the gradient."""
    engine = one_rank(model_path, configure())
    samples = make_samples()
    idle = replace(samples[0], token_weights=np.zeros_like(samples[0].token_weights))
    report = made(engine.train(pack_batches(1, (*samples, idle), 1, 100_000)[0]))
    assert report.statistics.loss == pytest.approx(expected[0].statistics.loss, abs=1e-6)
    assert report.grad_norm == pytest.approx(expected[0].grad_norm, rel=1e-5)
