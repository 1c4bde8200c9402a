"""State of this process that is changed for a while: variables, which its children inherit, and the collector."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within the block these variables have these values; after it they are as before."""
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
    """Within the block Python's garbage collector does not run.

    It goes through all objects again and again while large packages are imported: without it the import of vLLM takes
    a quarter less CPU time (13 s in place of 18 s on one core).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
