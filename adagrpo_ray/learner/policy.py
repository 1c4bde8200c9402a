"""The policy as a module whose forward pass gives log-probabilities of completion tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from adagrpo_ray.errors import ModelError
from adagrpo_ray.learner.buffers import chunk_tokens
from adagrpo_ray.learner.layout import Rows


class Policy(torch.nn.Module):
    """A PEFT model seen as a function from token ids to log-probabilities of the sampled tokens."""

    def __init__(self, peft_model: Any, max_over_ranks: Callable[[int], int] = lambda number: number) -> None:
        """`max_over_ranks` gives the largest of the numbers that the ranks call it with: an all-reduce MAX.

        It is needed where a rank holds a part of each weight only (ZeRO stage 3): each chunk of tokens gathers the
        head's weight from all ranks, so that all have to go over equally many chunks.
        """
        super().__init__()
        self.peft_model = peft_model
        self._max_over_ranks = max_over_ranks
        config = peft_model.get_base_model().config
        self._vocabulary: int = config.get_text_config().vocab_size
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(config, key, None) not in (None, 1, 1.0):
                raise ModelError(
                    f"model.path: {config.model_type} rescales its logits ({key}), which the learner does not do; "
                    "use a model without it"
                )

    def forward(self, rows: Rows) -> torch.Tensor:
        """Log-probabilities [n] of `rows.targets` at temperature 1, in float32.

        Logits exist for a chunk of the tokens at a time only (`chunk_tokens`) and are computed again in the backward
        pass.
        """
        model = self.peft_model.get_base_model()
        hidden = model.base_model(**rows.inputs, use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1)[rows.predicting]
        head = model.get_output_embeddings()
        chunks = self._max_over_ranks(max(1, math.ceil(len(chosen) / chunk_tokens(self._vocabulary))))
        return torch.cat(
            [
                checkpoint(_token_logprobs, head, h, t, use_reentrant=False)
                for h, t in zip(chosen.tensor_split(chunks), rows.targets.tensor_split(chunks), strict=True)
            ]
        )

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
