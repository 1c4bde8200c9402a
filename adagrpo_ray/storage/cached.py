"""A model folder in the user's cache: made once, whole or not at all, with its progress on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, which `make` fills if it is not there yet.

    `make` gets an empty folder next to it, which is renamed at the end, so that `folder` is never seen half written. Of
    several processes that ask at the same time one makes it and the others wait. Raises OSError if the cache cannot be
    written, and what `make` raises.
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
    """A bar on stderr if that is a terminal, else a line before; in both cases a line after, if nothing failed.

    The block calls what it gets after each of its `steps`. `done` begins the line after, which ends with the seconds
    that it took; `expected` ends the line before.
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
    """Without the progress bars that Transformers draws by itself."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write both as safetensors and a tokenizer's files. Raises OSError, whatever it is that fails."""
    with without_bars():
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except Exception as error:  # safetensors has an error of its own, and tokenizers none but this
            raise OSError(str(error)) from error
