"""The tiny base model on disk: built on first use, then taken from the user's cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adagrpo_ray.cache import cache_folder
from adagrpo_ray.config.tree import ArithmeticSettings, FormatSettings
from adagrpo_ray.data.arithmetic import SYSTEM_PROMPT
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.tiny_tokenizer import build_tokenizer
from adagrpo_ray.model.tiny_training import Recipe, train_tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Counts up with every change of the code that changes the model; the constants of a Recipe are hashed anyway.
RECIPE_VERSION = 1


def build_tiny_model(arithmetic: ArithmeticSettings, format: FormatSettings, recipe: Recipe | None = None) -> Path:
    """The folder of the tiny Qwen3 model and its tokenizer for these settings.

    Trains it (under a minute on one core) where the cache does not hold it yet; of several processes that ask
    at the same time one trains and the others wait. Raises ModelError where the cache cannot be written.
    """
    recipe = recipe or Recipe()
    folder = tiny_folder(arithmetic, format, recipe)
    if folder.is_dir():
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                _build(folder, arithmetic, format, recipe)
    except OSError as error:
        raise ModelError(
            f"cannot write the tiny model to {folder}: {error}; "
            "set XDG_CACHE_HOME to a folder that can be written and has 10 MB free"
        ) from None
    return folder


def tiny_folder(arithmetic: ArithmeticSettings, format: FormatSettings, recipe: Recipe | None = None) -> Path:
    """Where the tiny model for these settings is, or would be."""
    return cache_folder() / f"tiny-{_recipe_hash(arithmetic, format, recipe or Recipe())}"


def _recipe_hash(arithmetic: ArithmeticSettings, markers: FormatSettings, recipe: Recipe) -> str:
    """12 hex digits that change with anything that the model depends on."""
    parts = {
        "version": RECIPE_VERSION,
        "recipe": asdict(recipe),
        "keep_carry": sorted(arithmetic.keep_carry.items()),
        "seed": arithmetic.seed,
        "markers": markers.model_dump(),
        "system_prompt": SYSTEM_PROMPT,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _build(folder: Path, arithmetic: ArithmeticSettings, markers: FormatSettings, recipe: Recipe) -> None:
    """Train and save beside `folder`, then rename, so that the folder is never seen half written."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        tokenizer = build_tokenizer(markers)
        with _progress(recipe.steps) as advance:
            model = train_tiny_model(tokenizer, arithmetic, markers, recipe, advance)
        _save(model, tokenizer, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write both without transformers' own progress bar, which says nothing about one small file.

    Raises OSError, whatever it is that fails.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors has an error of its own, and tokenizers none but this
        raise OSError(str(error)) from error
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr where that is a terminal, else a line before and a line after."""
    title = "building the tiny base model, once"
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=steps)
            yield lambda: progress.advance(task)
        return
    started = time.monotonic()
    sys.stderr.write(f"{title} (under a minute)\n")
    yield lambda: None
    sys.stderr.write(f"built the tiny base model in {time.monotonic() - started:.0f} s\n")
