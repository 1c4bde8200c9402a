"""Layouts of a micro-batch in the model's input: padded rows, one packed row, or one row with shared prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo_ray.config.learner import Packing
from adagrpo_ray.model.shared_attention import parts_of_row
from adagrpo_ray.types import TokenIds, TrainSample


@dataclass(frozen=True)
class Rows:
    """A micro-batch as tensors: B rows of S tokens, of which the policy wrote n. Observed tokens are input only.

    - `inputs`: the arguments of the model: input_ids [B x S], and those that separate the samples.
    - `predicting` [n]: indices of the flattened [B x S] hidden states that predict the targets, sample by sample.
    - `targets` [n]: ids of the tokens that the policy wrote.
    """

    inputs: dict[str, Any]
    predicting: torch.Tensor
    targets: torch.Tensor


def pad(samples: Sequence[TrainSample], device: torch.device) -> Rows:
    """Put each sample into its own row, padded on the right.

    There is no mask: attention is causal, so that no token of a sample sees the padding behind it. With a mask torch
    could not use its flash kernel.
    """
    sequences = [_tokens(sample) for sample in samples]
    width = max(map(len, sequences))
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
    return _rows({"input_ids": input_ids}, samples, range(0, len(sequences) * width, width), device)


def join(samples: Sequence[TrainSample], device: torch.device) -> Rows:
    """Put all samples one after the other into one row, each with positions from 0.

    Flash kernels get the places at which samples begin and end, under the names that Transformers has for them
    (`FlashAttentionKwargs`). For all others Transformers finds the samples from the positions, and makes a
    block-diagonal mask (`find_packed_sequence_indices` in its masking_utils).
    """
    sequences = [_tokens(sample) for sample in samples]
    position_ids = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    bounds, longest = np.cumsum([0, *map(len, sequences)]), max(map(len, sequences))
    places = torch.tensor(bounds, dtype=torch.int32, device=device)
    inputs = {"input_ids": torch.cat(sequences)[None], "position_ids": position_ids[None]}
    rows = _rows(inputs, samples, bounds[:-1].tolist(), device)
    rows.inputs.update(cu_seq_lens_q=places, cu_seq_lens_k=places, max_length_q=longest, max_length_k=longest)
    return rows


def share(samples: Sequence[TrainSample], device: torch.device) -> Rows:
    """Put all samples into one row; neighbouring samples of the same prompt follow one copy of it.

    The positions of each sample continue those of the prompt, and `shared_attention` separates the samples. The mask is
    a dummy of four dimensions, which keeps Transformers from making one.
    """
    tokens: list[TokenIds] = []
    positions: list[torch.Tensor] = []
    predicting: list[NDArray[np.int64]] = []
    groups, place = [], 0
    for _, members in groupby(samples, key=prompt_key):
        group = list(members)
        prompt, lengths = group[0].prompt_token_ids, [len(sample.token_ids) for sample in group]
        groups.append((len(prompt), lengths))
        last, first = place + len(prompt) - 1, place + len(prompt)
        for sample, length in zip(group, lengths, strict=True):
            places = np.arange(first - 1, first + length - 1, dtype=np.int64)
            places[:1] = last  # the last prompt token predicts the first token of each completion
            predicting.append(sample.written(places))
            first += length
        tokens += [prompt, *(sample.token_ids for sample in group)]
        positions += [torch.arange(len(prompt)), *(len(prompt) + torch.arange(length) for length in lengths)]
        place = first
    inputs = {
        "input_ids": torch.from_numpy(np.concatenate(tokens)).long()[None].to(device),
        "position_ids": torch.cat(positions)[None].to(device),
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
        "shared": parts_of_row(groups, device),
    }
    return Rows(inputs, torch.from_numpy(np.concatenate(predicting)).to(device), _targets(samples, device))


LAYOUTS: dict[Packing, Callable[[Sequence[TrainSample], torch.device], Rows]] = {
    "padded": pad,
    "packed": join,
    "shared": share,
}
"""The function that lays samples out, by `learner.packing`."""


def prompt_key(sample: TrainSample) -> bytes:
    """A key that is equal for samples of the same prompt, and for no others."""
    return sample.prompt_token_ids.tobytes()


def _rows(
    inputs: dict[str, torch.Tensor], samples: Sequence[TrainSample], starts: Sequence[int], device: torch.device
) -> Rows:
    """The rows of `samples`, which begin at the indices `starts` of the flattened input."""
    # The last prompt token predicts the first sampled one.
    first = [start + len(sample.prompt_token_ids) - 1 for start, sample in zip(starts, samples, strict=True)]
    predicting = [
        sample.written(np.arange(place, place + len(sample.token_ids), dtype=np.int64))
        for place, sample in zip(first, samples, strict=True)
    ]
    return Rows(
        inputs={name: tensor.to(device) for name, tensor in inputs.items()},
        predicting=torch.from_numpy(np.concatenate(predicting)).to(device),
        targets=_targets(samples, device),
    )


def _targets(samples: Sequence[TrainSample], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([s.written(s.token_ids) for s in samples])).long().to(device)


def _tokens(sample: TrainSample) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([sample.prompt_token_ids, sample.token_ids])).long()
