"""The tiny base model on disk: built on the first use, then read from the user's cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from adagrpo_ray.config.data import ArithmeticSettings, FormatSettings
from adagrpo_ray.data.arithmetic import SYSTEM_PROMPT
from adagrpo_ray.errors import ModelError
from adagrpo_ray.storage.cache import cache_folder
from adagrpo_ray.storage.cached import make_once, progress, save_model
from adagrpo_ray.toy.tokenizer import build_tokenizer
from adagrpo_ray.toy.training import Recipe, addition_examples, train_model
from adagrpo_ray.toy.turn_examples import RECIPE, turn_examples, turn_tokenizer

# Raise it with every change of the code that changes the model. The constants of a Recipe are hashed anyway.
RECIPE_VERSION = 2


def build_tiny_model(arithmetic: ArithmeticSettings, format: FormatSettings, recipe: Recipe | None = None) -> Path:
    """Return the folder of the tiny Qwen3 model and its tokenizer for these settings.

    Trains the model, in under a minute on one core, if it is not in the cache. If several processes need it at the
    same time, one trains and the others wait. Raises ModelError if the cache cannot be written.
    """
    recipe = recipe or Recipe()
    folder = tiny_folder(arithmetic, format, recipe)
    try:
        return make_once(folder, lambda partial: _train(partial, arithmetic, format, recipe))
    except OSError as error:
        raise ModelError(
            f"cannot write the tiny model to {folder}: {error}; "
            "set XDG_CACHE_HOME to a folder that can be written and has 10 MB free"
        ) from None


def tiny_folder(arithmetic: ArithmeticSettings, format: FormatSettings, recipe: Recipe | None = None) -> Path:
    """Return the folder of the tiny model for these settings, which may not exist."""
    return cache_folder() / f"tiny-{_recipe_hash(arithmetic, format, recipe or Recipe())}"


def _recipe_hash(arithmetic: ArithmeticSettings, markers: FormatSettings, recipe: Recipe) -> str:
    """Return 12 hex digits of everything that the model depends on."""
    parts = {
        "version": RECIPE_VERSION,
        "recipe": asdict(recipe),
        "keep_carry": sorted(arithmetic.keep_carry.items()),
        "seed": arithmetic.seed,
        "markers": markers.model_dump(),
        "system_prompt": SYSTEM_PROMPT,
    }
    if arithmetic.episodes is not None:
        parts["episodes"] = [arithmetic.episodes, *RECIPE]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _train(folder: Path, arithmetic: ArithmeticSettings, markers: FormatSettings, recipe: Recipe) -> None:
    turns = arithmetic.episodes is not None
    tokenizer = turn_tokenizer(markers) if turns else build_tokenizer(markers)
    examples = turn_examples if turns else addition_examples
    head, batch = examples(tokenizer, arithmetic, markers, recipe.batch)
    title, done = "building the tiny base model, once", "built the tiny base model"
    with progress(title, recipe.steps, done, " (under a minute)") as advance:
        model = train_model(tokenizer, head, batch, recipe, arithmetic.seed, advance)
    save_model(model, tokenizer, folder)
