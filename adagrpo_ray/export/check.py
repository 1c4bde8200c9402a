"""Checks that a merged model is the rounded sum of base and adapter, by weights and by log-probabilities in float32.

Two differences are measured separately. The difference between the files and PEFT's own merge, rounded to the same
types, is float32 noise unless the export is wrong. The difference between the rounded weights and the adapter is the
cost of rounding, which is compared with the effect of the adapter.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.export.merge import Merge
from adagrpo_ray.lora.payload import PEFT_PREFIX

EPSILON = {"float32": 2.0**-20, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Allowed relative difference of a merged weight, by its type: twice the rounding error (float32: sixteen times)."""


MEAN, LARGEST = 1e-3, 2e-2
"""Allowed differences of log-probabilities from PEFT's merge in the same types, in nats: mean over all tokens, and of
any token.

On SmolLM2-135M there is no difference in any of the three types. Sums in another order may round single weights the
other way: the bound is about a hundredth of the effect of rounding all weights to bfloat16 there (0.06 to 0.13).
"""
COSTLY = 0.5
"""Share of the adapter's effect from which on the change by rounding gives a warning."""
NOTHING = 1e-4
"""An adapter with a smaller effect, in nats, has none that rounding could undo."""


@dataclass(frozen=True)
class Comparison:
    """Absolute differences of log-probabilities over greedy completions, in nats, and of weights.

    dtype: the type of the merged weights.
    prompts, tokens: the numbers of prompts and of generated tokens.
    mean, largest: between the files and PEFT's merge in the same types.
    rounding: mean change by rounding to the types of the files.
    effect: mean change by the adapter.
    agree: share of tokens that are the first choice of both the adapter and the merged model.
    wrong_weights: names of the weights that differ by more than rounding.
    """

    dtype: str
    prompts: int
    tokens: int
    mean: float
    largest: float
    rounding: float
    effect: float
    agree: float
    wrong_weights: tuple[str, ...]

    def __str__(self) -> str:
        """The results in words."""
        return (
            f"log-probabilities of {self.tokens} tokens of {self.prompts} greedy completions: the adapter changes them "
            f"by {self.effect:.2g} on average, rounding to {self.dtype} by {self.rounding:.2g}; {self.agree:.1%} of "
            f"the tokens are both models' first choice; the files differ from PEFT's own merge by {self.mean:.2g}"
        )

    @property
    def problem(self) -> str | None:
        """The error of the merged model; None if there is none."""
        if self.wrong_weights:
            count, first = len(self.wrong_weights), self.wrong_weights[0]
            return f"{count} weights are not the sum of base and adapter (first: {first})"
        if not (self.mean <= MEAN and self.largest <= LARGEST):  # also true for NaN
            return (
                f"{self} ({self.largest:.2g} at most), and may differ by {MEAN:g} ({LARGEST:g} at most); check that "
                "the files of the base model (--base) are whole, and that Transformers is the version of the training"
            )
        if self.rounding >= self.effect > NOTHING:
            return f"{self}: rounding undoes the effect of the adapter; use --dtype float32"
        return None

    @property
    def warning(self) -> str | None:
        """A warning if rounding changes much of the adapter's effect; else None."""
        if self.rounding < COSTLY * self.effect or self.effect <= NOTHING:
            return None
        return (
            f"rounding to {self.dtype} changes {self.rounding / self.effect:.0%} as much as the adapter does; "
            "--dtype float32 keeps all of it, in files twice as large"
        )


def check_bytes(numbers: int) -> int:
    """Memory that `compare` takes for a model of `numbers` parameters, in bytes: float32 weights, and a fifth more."""
    return int(numbers * 4 * 1.2) + 2**29


def compare(
    base: Path, adapter: Path, merged: Path, plan: Merge, prompts: Sequence[NDArray[np.int32]], new_tokens: int
) -> Comparison:
    """Compare the adapter on its base with the merged model, over greedy completions of `prompts`.

    base, adapter, merged: folders. The two models are loaded one after the other.
    plan: the merge that was written.
    prompts: token ids, shape [T] each.
    new_tokens: the number of tokens of each completion.

    Raises ModelError if either model cannot be loaded.
    """
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(_load(base), str(adapter)).eval()
    except Exception as error:  # PEFT raises various errors for invalid files
        raise ModelError(f"the adapter cannot be loaded on its base model for the check: {first_line(error)}") from None
    wrong = _wrong_weights(model, merged, plan.types)
    texts = [_greedy(model, torch.tensor(prompt.tolist()), new_tokens) for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    with torch.no_grad(), model.disable_adapter():
        plain, _ = _logprobs(model, texts, lengths)
    adapted, _ = _logprobs(model, texts, lengths)
    rounded, _ = _logprobs(_rounded(model.merge_and_unload(), plan.types), texts, lengths)
    del model
    gc.collect()
    try:
        model = _load(merged)
    except Exception as error:  # Transformers raises various errors for invalid files
        raise ModelError(f"the merged model cannot be loaded: {first_line(error)}") from None
    got, agree = _logprobs(model, texts, lengths)
    return Comparison(
        plan.dtype,
        len(texts),
        len(got),
        float((got - rounded).abs().mean()),
        float((got - rounded).abs().max()),
        float((rounded - adapted).abs().mean()),
        float((plain - adapted).abs().mean()),
        agree,
        tuple(wrong),
    )


def _rounded(model: Any, types: Mapping[str, str]) -> Any:
    """Round the weights of the model in place to the types that they have in the files; returns the model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (kind := types.get(name)) is not None:
                parameter.copy_(parameter.to(getattr(torch, kind)).float())
    return model


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        ).eval()
    finally:
        if shown:
            logging.enable_progress_bar()


def _wrong_weights(model: Any, merged: Path, types: Mapping[str, str]) -> list[str]:
    """Names of the weights with an adapter that differ from PEFT's own sum, or are missing in `merged`."""
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    wrong, seen = [], set()
    for file in sorted(merged.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights, torch.no_grad():
            for name in set(weights.keys()) & {_weight_name(layer) for layer in layers}:
                layer = layers[f"{PEFT_PREFIX}{name.removesuffix('.weight')}"]
                expected = layer.get_base_layer().weight + layer.get_delta_weight("default")
                bound = EPSILON[types[name]] * (expected.abs() + 1e-3 * expected.abs().max())
                seen.add(name)
                if not bool(((weights.get_tensor(name).float() - expected).abs() <= bound).all()):
                    wrong.append(name)
    return sorted({*wrong, *({_weight_name(layer) for layer in layers} - seen)})


def _weight_name(layer: str) -> str:
    return f"{layer.removeprefix(PEFT_PREFIX)}.weight"


def _greedy(model: Any, prompt: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """The prompt [T] followed by the greedy completion: [T + at most new_tokens]."""
    from transformers import GenerationConfig

    end = model.generation_config.eos_token_id
    first_end = end[0] if isinstance(end, list) else end
    greedy = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=first_end)
    with torch.no_grad():
        ids = prompt[None]
        text: torch.Tensor = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy
        )[0]
    return text


def _logprobs(model: Any, texts: Sequence[torch.Tensor], lengths: Sequence[int]) -> tuple[torch.Tensor, float]:
    """Log-probabilities of all tokens after the first `lengths` of each text, and the share that are the first choice.

    The tokens of all texts are concatenated.
    """
    found, first = [], []
    for text, length in zip(texts, lengths, strict=True):
        with torch.no_grad():
            logits = model(input_ids=text[None]).logits[0, length - 1 : -1].float()
        targets = text[length:]
        found.append(logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1))
        first.append(logits.argmax(-1) == targets)
    return torch.cat(found), float(torch.cat(first).float().mean())
