"""Divides completions into mini-batches, and packs these into micro-batches, as many on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from adagrpo_ray.config.learner import Packing
from adagrpo_ray.learner.layout import prompt_key
from adagrpo_ray.types import TrainBatch, TrainSample


def pack_batches(
    step: int,
    samples: Sequence[TrainSample],
    ranks: int,
    token_budget: int,
    packing: Packing = "padded",
    mini_batches: int = 1,
    passes: int = 1,
) -> list[TrainBatch]:
    """Make one TrainBatch for each rank; together they contain every sample once. Training makes `passes` over it.

    The prompts are dealt to `mini_batches` mini-batches, or to as many as there are prompts. So a mini-batch has all
    samples of its prompts. Its token weights are multiplied by the number of mini-batches, so that its loss is as large
    as that of the whole batch.

    A micro-batch has at most `token_budget` tokens in the model's input, including padding and all copies of prompts. A
    sample that is longer is a micro-batch of its own. Samples are sorted by length, so that a micro-batch needs little
    padding; with shared prompts, the samples of a prompt stay together, largest group first.

    The ranks get micro-batches in turn. If the last round does not reach all ranks, the others get a copy of the
    shortest sample with weights of zero. So every rank runs the same collectives, and no sample counts twice.
    """
    parts = _dealt(samples, mini_batches)
    packed = [_packed(part, ranks, token_budget, packing) for part in parts]
    return [
        TrainBatch(step, tuple(tuple(tuple(m) for m in micro_batches[rank::ranks]) for micro_batches in packed), passes)
        for rank in range(ranks)
    ]


def groups_with_advantage(samples: Iterable[TrainSample]) -> int:
    """The number of prompts of which a sample has an advantage; samples without one come from a KL term or a bonus."""
    return len({prompt_key(sample) for sample in samples if sample.advantage != 0.0})


def computed_tokens(samples: Sequence[TrainSample], packing: Packing) -> tuple[int, int]:
    """Tokens of prompts and of completions that a pass over all samples computes, without padding."""
    prompts = [len(sample.prompt_token_ids) for sample in samples]
    if packing == "shared":
        prompts = list({prompt_key(sample): length for sample, length in zip(samples, prompts, strict=True)}.values())
    return sum(prompts), sum(len(sample.token_ids) for sample in samples)


def _dealt(samples: Sequence[TrainSample], most: int) -> list[list[TrainSample]]:
    """The samples of each mini-batch, with its token weights; no mini-batch is empty."""
    prompts: dict[bytes, list[TrainSample]] = {}  # in the order of their first samples
    for sample in samples:
        prompts.setdefault(prompt_key(sample), []).append(sample)
    count = min(most, len(prompts))
    if count == 1:
        return [list(samples)]
    return [
        [
            replace(sample, token_weights=sample.token_weights * np.float32(count))
            for group in list(prompts.values())[place::count]
            for sample in group
        ]
        for place in range(count)
    ]


def _packed(samples: Sequence[TrainSample], ranks: int, token_budget: int, packing: Packing) -> list[list[TrainSample]]:
    """The micro-batches of a mini-batch; their number is a multiple of `ranks`."""
    micro_batches: list[list[TrainSample]] = []
    for sample in _by_prompt(samples) if packing == "shared" else sorted(samples, key=_length, reverse=True):
        if micro_batches and _size([*micro_batches[-1], sample], packing) <= token_budget:
            micro_batches[-1].append(sample)
        else:
            micro_batches.append([sample])
    shortest = min(samples, key=_length)
    idle = replace(shortest, token_weights=np.zeros_like(shortest.token_weights))
    return micro_batches + [[idle]] * (-len(micro_batches) % ranks)


def _by_prompt(samples: Sequence[TrainSample]) -> Iterable[TrainSample]:
    """The samples of each prompt one after the other, longest first; prompts in the order of their total size."""
    groups: dict[bytes, list[TrainSample]] = {}
    for sample in sorted(samples, key=_length, reverse=True):
        groups.setdefault(prompt_key(sample), []).append(sample)
    for group in sorted(groups.values(), key=lambda group: _size(group, "shared"), reverse=True):
        yield from group


def _size(samples: Sequence[TrainSample], packing: Packing) -> int:
    """Tokens of a micro-batch; padded rows are as wide as the longest sample, which is the first."""
    if packing == "padded":
        return _length(samples[0]) * len(samples)
    if packing == "packed":
        return sum(map(_length, samples))
    prompts = {prompt_key(sample): len(sample.prompt_token_ids) for sample in samples}
    return sum(prompts.values()) + sum(len(sample.token_ids) for sample in samples)


def _length(sample: TrainSample) -> int:
    return len(sample.prompt_token_ids) + len(sample.token_ids)
