"""The tiny model of the task `skills`: its training, and the success rates that its samples have."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from skills import HEAD, LONGEST, OPERANDS, SKILLS, Skill

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.storage.cached import make_once, progress, save_model
from adagrpo_ray.toy.tokenizer import build_tokenizer
from adagrpo_ray.toy.training import Example, Recipe, forked_example, train_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RECIPE = Recipe(steps=400, batch=40)
SEED = 0
VERSION = 1
"""Raise it with every change of the code that changes the model, such as an operation or the training."""


def recipe_hash(recipe: Recipe = RECIPE) -> str:
    """8 hex digits of everything that the model depends on."""
    skills = [(s.name, s.rate, s.prompt("4821"), s.answer("4821"), s.wrong_answer("4821")) for s in SKILLS]
    parts = {"version": VERSION, "recipe": asdict(recipe), "seed": SEED, "skills": skills}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def build(folder: Path) -> None:
    """Train the model into `folder`, in under a minute on one core, unless it exists."""
    make_once(folder, _train)


def batch_of(tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, size: int) -> list[Example]:
    """`size` examples after HEAD: problems of all skills in turn, each with both of its procedures.

    With both in the same batch, the rate has no sampling noise, which matters for a rate of 0.5 %.
    """
    examples = []
    for place in range(size // 2):
        skill, operand = SKILLS[place % len(SKILLS)], f"{rng.integers(OPERANDS):04d}"
        prompt = tokenizer.encode(skill.prompt(operand).removeprefix(HEAD))
        solutions = skill.answer(operand), skill.wrong_answer(operand)
        examples += [forked_example(tokenizer, prompt, *solutions, skill.rate, taken=taken) for taken in (True, False)]
    return examples


def _train(folder: Path) -> None:
    tokenizer = build_tokenizer(FormatSettings())
    rng = np.random.default_rng(SEED)
    with progress("building the model of the skills, once", RECIPE.steps, "built the model of the skills") as advance:
        head = tokenizer.encode(HEAD)
        model = train_model(tokenizer, head, lambda step: batch_of(tokenizer, rng, RECIPE.batch), RECIPE, SEED, advance)
    save_model(model, tokenizer, folder)


def success_rates(folder: Path, samples: int, seed: int = 0) -> dict[str, float]:
    """The share of correct completions at temperature 1 for each skill, over `samples` operands with one each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.eval()
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    with torch.inference_mode():
        return {skill.name: _rate(model, tokenizer, skill, samples, rng, generator) for skill in SKILLS}


def _rate(model: Any, tokenizer: Any, skill: Skill, samples: int, rng: np.random.Generator, generator: Any) -> float:
    import torch

    operands = [f"{number:04d}" for number in rng.integers(OPERANDS, size=samples)]
    ids = torch.tensor([tokenizer.encode(skill.prompt(operand)) for operand in operands])
    cache, drawn = None, []
    for _ in range(LONGEST):
        output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids, cache = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=generator), output.past_key_values
        drawn.append(ids)
    texts = [tokenizer.decode(row).partition(tokenizer.eos_token)[0] for row in torch.cat(drawn, dim=1)]
    return float(np.mean([text == skill.answer(operand) for text, operand in zip(texts, operands, strict=True)]))
