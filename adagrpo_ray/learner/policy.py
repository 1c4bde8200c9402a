"""The policy as a module whose forward pass gives log-probabilities of completion tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from adagrpo_ray.errors import ModelError
from adagrpo_ray.types import TrainSample

CHUNK = 2048  # tokens whose logits exist at a time: 2048 x 150,000 words x 4 bytes = 1.2 GB


@dataclass(frozen=True)
class Padded:
    """A micro-batch as tensors. B samples padded on the right to S tokens, n completion tokens in all.

    `positions` [n] index the flattened [B x S] hidden states that predict `targets` [n].
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


def pad(samples: Sequence[TrainSample], device: torch.device) -> Padded:
    """The samples of a micro-batch side by side; masks come from lengths, never from a token's value."""
    sequences = [torch.from_numpy(np.concatenate([s.prompt_token_ids, s.token_ids])).long() for s in samples]
    width = max(len(s) for s in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    attention_mask = torch.zeros(len(sequences), width, dtype=torch.long)
    positions = []
    for row, (sample, sequence) in enumerate(zip(samples, sequences, strict=True)):
        input_ids[row, : len(sequence)] = sequence
        attention_mask[row, : len(sequence)] = 1
        first = row * width + len(sample.prompt_token_ids) - 1  # the last prompt token predicts the first sampled one
        positions.append(torch.arange(first, first + len(sample.token_ids)))
    return Padded(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        positions=torch.cat(positions).to(device),
        targets=torch.from_numpy(np.concatenate([s.token_ids for s in samples])).long().to(device),
    )


class Policy(torch.nn.Module):
    """A PEFT model seen as a function from token ids to log-probabilities of the sampled tokens."""

    def __init__(self, peft_model: Any) -> None:
        super().__init__()
        self.peft_model = peft_model
        config = peft_model.get_base_model().config
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(config, key, None) not in (None, 1, 1.0):
                raise ModelError(
                    f"model.path: {config.model_type} rescales its logits ({key}), which the learner does not do; "
                    "use a model without it"
                )

    def forward(self, batch: Padded) -> torch.Tensor:
        """Log-probabilities [n] of `batch.targets` at temperature 1, in float32.

        Logits exist for CHUNK tokens at a time only and are computed again in the backward pass.
        """
        model = self.peft_model.get_base_model()
        hidden = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        chosen = hidden.flatten(0, 1)[batch.positions]
        head = model.get_output_embeddings()
        chunks = [
            checkpoint(_token_logprobs, head, h, t, use_reentrant=False)
            for h, t in zip(torch.split(chosen, CHUNK), torch.split(batch.targets, CHUNK), strict=True)
        ]
        return torch.cat(chunks)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the model is the reference policy: adapter off, no gradients."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), self.peft_model.disable_adapter():
                yield
        finally:
            self.train(training)


def _token_logprobs(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = head(hidden).float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
