"""Ends a command: its exit code, and one line on standard error for an error of this library."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable

from adagrpo_ray.errors import AdaGRPOError, ConfigError, StoppedError
from adagrpo_ray.stop import Stop


class Exit(Stop):
    """A `Stop` whose second signal ends the program at once."""

    def leave(self, number: int) -> None:
        os._exit(128 + number)


def show_any_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def not_empty(options: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError if one of these options has an empty value, as from an unset shell variable."""
    for name in names:
        value = getattr(options, name.strip("-").replace("-", "_").lower())
        for each in value if isinstance(value, list) else [value]:
            if each is not None and not str(each).strip():
                raise ConfigError(f"{name} is empty; give it a value, or leave it out")


def ended(work: Callable[[], object], stop: Stop | None = None) -> int:
    """Run `work`. Returns the exit code: 0, 2 after an error of this library, or 128 + the number of a signal."""
    show_any_text()
    try:
        work()
    except StoppedError as error:
        print(error, file=sys.stderr)
        return 128 + (stop.interrupted if stop else 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except AdaGRPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
