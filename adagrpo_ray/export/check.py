"""Whether a merged model is base and adapter added and rounded: weights, and log-probabilities in float32.

Two differences are kept apart. That between the files and what PEFT itself merges, rounded to the same types, is noise
of float32, or the export is wrong. That between the rounded weights and the adapter is what the type costs, which is
compared with what the adapter does.
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
"""Largest relative difference of a merged weight by its type: twice what rounding does (float32: sixteen times)."""


MEAN, LARGEST = 1e-3, 2e-2
"""Largest differences of log-probabilities to PEFT's merge in the same types: over all tokens, and of any one.

On SmolLM2-135M there is none, in all three types. Sums in another order may round single weights the other way: this
is about a hundredth of what rounding all of them to bfloat16 does there (0.06 to 0.13).
"""
COSTLY = 0.5
"""From this share of the adapter's own effect on, what rounding changes is worth a warning."""
NOTHING = 1e-4
"""An adapter with a smaller effect does nothing that rounding could undo."""


@dataclass(frozen=True)
class Comparison:
    """Mean absolute differences of log-probabilities over `tokens` of greedy completions, and of weights.

    `mean` and `largest` are those between the files and PEFT's merge in the same types; `rounding` is what the types
    change, `effect` what the adapter changes, `agree` the share of tokens that are the first choice of both the adapter
    and the merged model. `wrong_weights` names the weights that differ by more than rounding.
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
        """The figures in words."""
        return (
            f"log-probabilities of {self.tokens} tokens of {self.prompts} greedy completions: the adapter changes them "
            f"by {self.effect:.2g} on average, rounding to {self.dtype} by {self.rounding:.2g}; {self.agree:.1%} of "
            f"the tokens are both models' first choice; the files differ from PEFT's own merge by {self.mean:.2g}"
        )

    @property
    def problem(self) -> str | None:
        """Error of the merged model; None if there is none."""
        if self.wrong_weights:
            return f"{len(self.wrong_weights)} weights are not base and adapter added, {self.wrong_weights[0]} first"
        if not (self.mean <= MEAN and self.largest <= LARGEST):  # NaN does not pass
            return (
                f"{self} ({self.largest:.2g} at most), and may differ by {MEAN:g} ({LARGEST:g} at most); check that "
                "the files of the base model (--base) are whole, and that Transformers is the version of the training"
            )
        if self.rounding >= self.effect > NOTHING:
            return f"{self}: rounding undoes what the adapter does; use --dtype float32"
        return None

    @property
    def warning(self) -> str | None:
        """Share of the adapter's effect that rounding costs, if that is much."""
        if self.rounding < COSTLY * self.effect or self.effect <= NOTHING:
            return None
        return (
            f"rounding to {self.dtype} changes {self.rounding / self.effect:.0%} as much as the adapter does; "
            "--dtype float32 keeps all of it, in files twice as large"
        )


def check_bytes(numbers: int) -> int:
    """Memory that `compare` takes for a model of so many numbers: float32 weights, and a fifth beside."""
    return int(numbers * 4 * 1.2) + 2**29


def compare(
    base: Path, adapter: Path, merged: Path, plan: Merge, prompts: Sequence[NDArray[np.int32]], new_tokens: int
) -> Comparison:
    """The adapter on its base against the merged model, one after the other, over greedy completions of `prompts`.

    Raises ModelError if either cannot be loaded.
    """
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(_load(base), str(adapter)).eval()
    except Exception as error:  # what a file holds makes PEFT fail in any way
        raise ModelError(
            f"the adapter cannot be loaded on its base model to compare with: {first_line(error)}"
        ) from None
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
    except Exception as error:  # whatever is wrong with what was written
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
    """The model with its weights rounded, in place, to the types that they have in the files."""
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
    """Names of the weights with an adapter that are not in `merged` what PEFT itself would make of them."""
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
    """The prompt [T] and what the model goes on with."""
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
    """Log-probabilities of all tokens after the first `lengths` of each text; the share that are the first choice."""
    found, first = [], []
    for text, length in zip(texts, lengths, strict=True):
        with torch.no_grad():
            logits = model(input_ids=text[None]).logits[0, length - 1 : -1].float()
        targets = text[length:]
        found.append(logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1))
        first.append(logits.argmax(-1) == targets)
    return torch.cat(found), float(torch.cat(first).float().mean())
