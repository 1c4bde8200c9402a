"""Micro-batches by token budget: no sample is lost or counts twice, and all ranks have the same number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.config.learner import Packing
from adagrpo_ray.learner.packing import computed_tokens, groups_with_advantage, pack_batches
from adagrpo_ray.types import TrainBatch, TrainSample

PACKINGS = st.sampled_from(get_args(Packing))
LENGTHS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40)), max_size=30)


def make_sample(prompt: int, completion: int) -> TrainSample:
    """A sample whose prompt is that of all samples with a prompt of this length."""
    return TrainSample(
        prompt_token_ids=np.zeros(prompt, np.int32),
        token_ids=np.zeros(completion, np.int32),
        behaviour_logprobs=np.zeros(completion, np.float32),
        token_weights=np.full(completion, 0.5, np.float32),
        advantage=1.0,
    )


def length(sample: TrainSample) -> int:
    return len(sample.prompt_token_ids) + len(sample.token_ids)


def shape(batches: Sequence[TrainBatch]) -> list[list[list[int]]]:
    """Lengths, by rank and micro-batch."""
    return [[[length(s) for s in micro] for micro in batch.micro_batches] for batch in batches]


def idle(sample: TrainSample) -> bool:
    return not sample.token_weights.any()


def test_packing_matches_an_example_by_hand() -> None:
    # Longest first: 9 alone (2 x 9 > 16), then 8 + 7 padded to 16, then 3 + 2 + 1 padded to 9.
    samples = [make_sample(1, n) for n in (2, 8, 1, 7, 0, 6)]
    assert shape(pack_batches(1, samples, ranks=1, token_budget=16)) == [[[9], [8, 7], [3, 2, 1]]]
    assert shape(pack_batches(1, samples, ranks=2, token_budget=16)) == [[[9], [3, 2, 1]], [[8, 7], [1]]]


def test_padding_counts_in_the_budget() -> None:
    # 10 + 5 + 5 are 20 tokens, but 30 with padding.
    samples = [make_sample(1, n) for n in (9, 4, 4)]
    assert shape(pack_batches(1, samples, ranks=1, token_budget=20)) == [[[10, 5], [5]]]


def test_a_packed_row_has_no_padding() -> None:
    samples = [make_sample(1, n) for n in (9, 4, 4)]
    assert shape(pack_batches(1, samples, ranks=1, token_budget=20, packing="packed")) == [[[10, 5, 5]]]
    assert shape(pack_batches(1, samples, ranks=1, token_budget=19, packing="packed")) == [[[10, 5], [5]]]
    assert shape(pack_batches(1, samples, ranks=3, token_budget=15, packing="packed")) == [[[10, 5]], [[5]], [[5]]]


def test_a_shared_prompt_counts_once_and_its_samples_stay_together() -> None:
    # Prompts of 10 and of 4 tokens: 10 + 6 + 5 + 1 = 22 and 4 + 8 + 7 = 19.
    samples = [make_sample(*pair) for pair in ((10, 1), (4, 8), (10, 6), (4, 7), (10, 5))]
    for budget, expected in {
        41: [[[16, 15, 11, 12, 11]]],
        40: [[[16, 15, 11, 12], [11]]],
        21: [[[16, 15], [11], [12, 11]]],
    }.items():
        assert shape(pack_batches(1, samples, 1, budget, "shared")) == expected


def test_a_sample_above_the_budget_is_a_micro_batch_of_its_own() -> None:
    samples = [make_sample(1, n) for n in (99, 1, 1)]
    assert shape(pack_batches(1, samples, ranks=1, token_budget=10)) == [[[100], [2, 2]]]


@pytest.mark.parametrize("packing", get_args(Packing))
def test_mini_batches_have_whole_prompts_and_the_loss_of_the_batch(packing: Packing) -> None:
    samples = [make_sample(prompt, 4) for prompt in (5, 5, 7, 3, 3, 9)]
    (batch,) = pack_batches(1, samples, 1, 1000, packing, mini_batches=2)
    prompts = [
        sorted({len(s.prompt_token_ids) for micro in micro_batches for s in micro})
        for micro_batches in batch.mini_batches
    ]
    assert prompts == [[3, 5], [7, 9]]  # dealt in the order of their first samples
    assert {w for micro in batch.micro_batches for s in micro for w in s.token_weights} == {1.0}  # 2 x 0.5
    (batch,) = pack_batches(1, samples, 1, 1000, packing, mini_batches=9)
    assert [len(micro_batches) for micro_batches in batch.mini_batches] == [1, 1, 1, 1]  # one for each prompt


def test_a_shared_prompt_is_computed_once() -> None:
    samples = [make_sample(prompt, 4) for prompt in (5, 5, 7, 5)]
    assert computed_tokens(samples, "shared") == (12, 16)
    assert computed_tokens(samples, "padded") == computed_tokens(samples, "packed") == (22, 16)
    assert computed_tokens((), "shared") == (0, 0)


def test_groups_without_an_advantage_make_no_mini_batches() -> None:
    samples = [make_sample(prompt, 4) for prompt in (5, 5, 7, 3)]
    of_a_kl_term = [replace(sample, advantage=0.0) for sample in samples[1:3]]
    assert groups_with_advantage([samples[0], *of_a_kl_term, samples[3]]) == 2
    assert groups_with_advantage(()) == 0


def test_ranks_have_the_same_numbers_of_mini_and_micro_batches() -> None:
    samples = [make_sample(prompt, 4) for prompt in (5, 5, 5, 7)]
    batches = pack_batches(1, samples, 2, 18, mini_batches=2)
    assert [[len(micro_batches) for micro_batches in b.mini_batches] for b in batches] == [[1, 1], [1, 1]]
    first, second = ([len(micro) for micro in b.micro_batches] for b in batches)
    assert (first, second) == ([2, 1], [1, 1])
    assert idle(batches[1].micro_batches[1][0])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_step_without_samples_has_no_micro_batches_on_any_rank(ranks: int) -> None:
    batches = pack_batches(5, [], ranks, token_budget=10)
    assert [(b.step, b.micro_batches) for b in batches] == [(5, ())] * ranks


@given(LENGTHS, st.integers(1, 4), st.integers(1, 100), PACKINGS)
def test_every_sample_is_packed_once_and_idle_copies_have_no_weight(
    lengths: list[tuple[int, int]], ranks: int, budget: int, packing: Packing
) -> None:
    samples = [make_sample(*pair) for pair in lengths]
    packed = [s for b in pack_batches(1, samples, ranks, budget, packing) for m in b.micro_batches for s in m]
    assert sorted(id(s) for s in packed if not idle(s)) == sorted(map(id, samples))
    extra = [s for s in packed if idle(s)]
    assert len(extra) < ranks
    assert all(s.token_weights.shape == s.token_ids.shape for s in extra)
    assert all(length(s) == min(map(length, samples)) for s in extra)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 100), PACKINGS)
def test_ranks_have_equally_many_micro_batches_within_the_budget(
    lengths: list[tuple[int, int]], ranks: int, budget: int, packing: Packing
) -> None:
    batches = pack_batches(3, [make_sample(*pair) for pair in lengths], ranks, budget, packing)
    assert [b.step for b in batches] == [3] * ranks
    assert len({len(b.micro_batches) for b in batches}) == 1
    for micro in (m for b in batches for m in b.micro_batches):
        assert micro
        prompts = {len(sample.prompt_token_ids) for sample in micro}
        tokens = {
            "padded": max(map(length, micro)) * len(micro),
            "packed": sum(map(length, micro)),
            "shared": sum(prompts) + sum(len(sample.token_ids) for sample in micro),
        }
        assert len(micro) == 1 or tokens[packing] <= budget


def test_packing_does_not_change_the_samples() -> None:
    sample = make_sample(1, 3)
    pack_batches(1, [sample], ranks=4, token_budget=10)
    assert sample.token_weights.tolist() == [0.5] * 3
