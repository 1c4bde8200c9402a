"""Model folders in the user's cache, each made once and in one piece, with progress on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`, which `make` fills if it does not exist yet.

    `make` gets an empty folder next to it, which is renamed at the end, so `folder` never exists half written. If
    several processes need it at the same time, one makes it and the others wait. Raises OSError if the cache cannot be
    written. Errors of `make` pass through.
    """
    if folder.is_dir():
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            partial.mkdir()
            try:
                make(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def progress(title: str, steps: int, done: str, expected: str = "") -> Iterator[Callable[[], None]]:
    """Show the progress of the block on stderr: a bar on a terminal, else one line at the start.

    The block gets a function, and calls it after each of its `steps`. A line at the end has `done` and the seconds
    taken, unless the block fails. `expected` ends the line at the start.
    """
    started = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=steps)
            yield lambda: bar.advance(task)
    else:
        sys.stderr.write(f"{title}{expected}\n")
        yield lambda: None
    sys.stderr.write(f"{done} in {time.monotonic() - started:.0f} s\n")


@contextmanager
def without_bars() -> Iterator[None]:
    """Turn off the progress bars of Transformers within the block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the model as safetensors, and the files of the tokenizer. Raises OSError if anything fails."""
    with without_bars():
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except Exception as error:  # safetensors has its own error, and tokenizers raises a plain Exception
            raise OSError(str(error)) from error
