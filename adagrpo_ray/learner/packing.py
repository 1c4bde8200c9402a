"""Completions of any length into micro-batches by a token budget, the same number for every rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from adagrpo_ray.config.learner import Packing
from adagrpo_ray.learner.layout import prompt_key
from adagrpo_ray.types import TrainBatch, TrainSample


def pack_batches(
    step: int, samples: Sequence[TrainSample], ranks: int, token_budget: int, packing: Packing = "padded"
) -> list[TrainBatch]:
    """One TrainBatch for each rank; together they hold every sample once.

    A micro-batch holds at most `token_budget` tokens as they lie in the model's input, with padding and with one copy
    of a prompt or several, or one sample that is longer. Samples are sorted by length, so that those of a micro-batch
    need little padding; with shared prompts, those of a prompt stay together, longest group first. Micro-batches
    are dealt to the ranks in turn. If the last round does not reach all ranks, the others get a copy of the shortest
    sample with weights of zero: every rank runs the same collectives and nothing is counted twice.
    """
    micro_batches: list[list[TrainSample]] = []
    for sample in _by_prompt(samples) if packing == "shared" else sorted(samples, key=_length, reverse=True):
        if micro_batches and _size([*micro_batches[-1], sample], packing) <= token_budget:
            micro_batches[-1].append(sample)
        else:
            micro_batches.append([sample])
    if micro_batches:
        shortest = min(samples, key=_length)
        idle = replace(shortest, token_weights=np.zeros_like(shortest.token_weights))
        micro_batches += [[idle]] * (-len(micro_batches) % ranks)
    return [TrainBatch(step, tuple(tuple(m) for m in micro_batches[rank::ranks])) for rank in range(ranks)]


def _by_prompt(samples: Sequence[TrainSample]) -> Iterable[TrainSample]:
    """The samples of each prompt one after the other, longest first, and prompts by what all of theirs take."""
    groups: dict[bytes, list[TrainSample]] = {}
    for sample in sorted(samples, key=_length, reverse=True):
        groups.setdefault(prompt_key(sample), []).append(sample)
    for group in sorted(groups.values(), key=lambda group: _size(group, "shared"), reverse=True):
        yield from group


def _size(samples: Sequence[TrainSample], packing: Packing) -> int:
    """Tokens of a micro-batch; padded rows are as wide as the longest sample, which comes first."""
    if packing == "padded":
        return _length(samples[0]) * len(samples)
    if packing == "packed":
        return sum(map(_length, samples))
    prompts = {prompt_key(sample): len(sample.prompt_token_ids) for sample in samples}
    return sum(prompts.values()) + sum(len(sample.token_ids) for sample in samples)


def _length(sample: TrainSample) -> int:
    return len(sample.prompt_token_ids) + len(sample.token_ids)
