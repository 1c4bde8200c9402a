"""Completions of any length into micro-batches by a token budget, the same number for every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adagrpo_ray.types import TrainBatch, TrainSample


def pack_batches(
    step: int, samples: Sequence[TrainSample], ranks: int, token_budget: int, padded: bool = True
) -> list[TrainBatch]:
    """One TrainBatch for each rank; together they hold every sample once.

    Samples are sorted by length, so that those of a micro-batch need little padding; a micro-batch holds
    at most `token_budget` tokens, with its padding where they are `padded`, or one sample that is longer.
    Micro-batches are dealt to the ranks in turn. Where the last round does not reach all ranks, the others get a
    copy of the shortest sample with weights of zero: every rank runs the same collectives and nothing is counted
    twice.
    """
    micro_batches: list[list[TrainSample]] = []
    for sample in sorted(samples, key=_length, reverse=True):
        if micro_batches and _size([*micro_batches[-1], sample], padded) <= token_budget:
            micro_batches[-1].append(sample)
        else:
            micro_batches.append([sample])
    if micro_batches:
        shortest = micro_batches[-1][-1]
        idle = replace(shortest, token_weights=np.zeros_like(shortest.token_weights))
        micro_batches += [[idle]] * (-len(micro_batches) % ranks)
    return [TrainBatch(step, tuple(tuple(m) for m in micro_batches[rank::ranks])) for rank in range(ranks)]


def _size(samples: Sequence[TrainSample], padded: bool) -> int:
    """Tokens of a micro-batch, whose longest sample comes first and sets the width of padded rows."""
    return _length(samples[0]) * len(samples) if padded else sum(map(_length, samples))


def _length(sample: TrainSample) -> int:
    return len(sample.prompt_token_ids) + len(sample.token_ids)
