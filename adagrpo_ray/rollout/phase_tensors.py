"""The arithmetic of the sampling parameters of phases, on the logits of a batch: plain torch, on any device.

Both logits processors, that of vLLM's first model runner and that of its second, apply it. Axis names: R batch rows
that have phases, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adagrpo_ray.config.sampling import PhaseParams

GREEDY_BELOW = 1e-5  # the temperature below which vLLM, too, takes the likeliest token


def penalise_repetition(logits: torch.Tensor, used: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Divide the positive logits [R, V] of `used` tokens [R, V] by `penalty` [R], and multiply the others by it."""
    penalty = penalty[:, None]
    return torch.where(used, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def apply_temperature(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Divide logits [R, V] by `temperature` [R]; a greedy row keeps only the likeliest token, with logit 0."""
    greedy = temperature < GREEDY_BELOW
    scaled = logits / temperature.masked_fill(greedy, 1.0)[:, None]
    likeliest = torch.full_like(logits, -torch.inf).scatter_(1, logits.argmax(dim=1, keepdim=True), 0.0)
    return torch.where(greedy[:, None], likeliest, scaled)


def filter_min_p(logits: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Remove the tokens from logits [R, V] that are less probable than `min_p` [R] times the likeliest one."""
    probabilities = logits.softmax(dim=1)
    least = probabilities.amax(dim=1, keepdim=True) * min_p[:, None]
    return logits.masked_fill(probabilities < least, -torch.inf)


def kept_of(top_k: int, vocabulary: int) -> int:
    """The number of tokens that `top_k` keeps; vLLM's value for "off" is the size of the vocabulary."""
    return min(top_k or vocabulary, vocabulary)


@dataclass(frozen=True)
class PhaseTensors:
    """The parameters of R rows; a filter that no row uses is None.

    - `temperature`, `min_p`, `top_k`, `top_p`, `penalty`: [R].
    - `used` [R, V]: whether a token is in the prompt or the output of a row.
    """

    temperature: torch.Tensor
    min_p: torch.Tensor | None
    top_k: torch.Tensor | None
    top_p: torch.Tensor | None
    penalty: torch.Tensor | None
    used: torch.Tensor | None

    @classmethod
    def of(cls, phases: Sequence[PhaseParams], texts: Sequence[Sequence[int]], logits: torch.Tensor) -> PhaseTensors:
        """Tensors for rows in these phases with these token ids (prompt and output).

        Vocabulary and device are those of `logits` [., V].
        """
        size, device = logits.shape[1], logits.device

        def column(values: Sequence[float], off: float, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
            return None if all(v == off for v in values) else torch.tensor(values, dtype=dtype, device=device)

        penalty = column([p.repetition_penalty for p in phases], 1.0)
        used = None
        if penalty is not None:
            used = torch.zeros(len(phases), size, dtype=torch.bool, device=device)
            for row, (phase, text) in enumerate(zip(phases, texts, strict=True)):
                if phase.repetition_penalty != 1.0:
                    used[row, torch.tensor(text, dtype=torch.long, device=device)] = True
        return cls(
            temperature=torch.tensor([p.temperature for p in phases], dtype=torch.float32, device=device),
            min_p=column([p.min_p for p in phases], 0.0),
            top_k=column([kept_of(p.top_k, size) for p in phases], size, torch.int32),
            top_p=column([p.top_p for p in phases], 1.0),
            penalty=penalty,
            used=used,
        )

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the parameters to the logits [R, V] of the rows, in float32 and in the order of vLLM's steps."""
        if self.penalty is not None and self.used is not None:
            logits = penalise_repetition(logits, self.used, self.penalty)
        logits = apply_temperature(logits, self.temperature)
        if self.min_p is not None:
            logits = filter_min_p(logits, self.min_p)
        if self.top_k is None and self.top_p is None:
            return logits
        # vLLM's own function: sorting the vocabulary at each step would cost as much as a small model.
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        filtered: torch.Tensor = apply_top_k_top_p(logits, self.top_k, self.top_p)
        return filtered
