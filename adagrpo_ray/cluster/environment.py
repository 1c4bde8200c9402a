"""Temporary changes of this process: environment variables, which children inherit, and the garbage collector."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the block, and restore them after it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def collector_off() -> Iterator[None]:
    """Turn off Python's garbage collector within the block.

    The collector scans all objects many times while large packages are imported. Without it the import of vLLM takes a
    quarter less CPU time (13 s in place of 18 s on one core).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
