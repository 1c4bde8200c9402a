"""How the commands end: an exit code, and one line for whatever a person can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from adagrpo_ray.errors import AdaGRPOError, StoppedError
from adagrpo_ray.stop import Stop


class Exit(Stop):
    """A second signal ends the program, whatever it does just now."""

    def leave(self, number: int) -> None:
        os._exit(128 + number)


def ended(work: Callable[[], object], stop: Stop | None = None) -> int:
    """The exit code of `work`: 0, 2 after an error that is said, or as convention has it after a signal."""
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
