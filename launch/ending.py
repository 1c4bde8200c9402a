"""How the commands end: an exit code, and one line for whatever a person can mend."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable

from adagrpo_ray.errors import AdaGRPOError, ConfigError, StoppedError
from adagrpo_ray.stop import Stop


class Exit(Stop):
    """A second signal ends the program, whatever it does just now."""

    def leave(self, number: int) -> None:
        os._exit(128 + number)


def show_any_text() -> None:
    """Show letters that the terminal's encoding lacks by their numbers, in place of a UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def not_empty(options: argparse.Namespace, *names: str) -> None:
    """ConfigError for an option that was given without a value, as "$UNSET" is."""
    for name in names:
        value = getattr(options, name.strip("-").replace("-", "_").lower())
        for each in value if isinstance(value, list) else [value]:
            if each is not None and not str(each).strip():
                raise ConfigError(f"{name} is empty; give it a value, or leave it out")


def ended(work: Callable[[], object], stop: Stop | None = None) -> int:
    """The exit code of `work`: 0, 2 after an error that is said, or as convention has it after a signal."""
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
