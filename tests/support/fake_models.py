"""A causal language model without layers of attention, for tests of the policy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import torch

Decoder = TypeVar("Decoder", bound=torch.nn.Module)


class FakeModel(torch.nn.Module, Generic[Decoder]):
    """A head over the hidden states of `body`, in the shape of a PEFT model."""

    def __init__(self, body: Decoder, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.body, self.head = body, torch.nn.Linear(hidden, vocabulary)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=vocabulary), model_type="fake")

    def get_base_model(self) -> FakeModel[Decoder]:
        return self

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head

    def get_decoder(self) -> Decoder:
        return self.body

    @property
    def base_model(self) -> Decoder:
        return self.body

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.body(input_ids).last_hidden_state))
