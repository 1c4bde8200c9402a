"""The process that generates problems of reasoning-gym: `python -m adagrpo_ray.data.gym_process RESULT`.

It reads the pickled settings and numbers of problems from standard input. It writes the pickled problems, or the error
of this library that was raised, to the file RESULT.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from adagrpo_ray.data.gym_problems import generate
from adagrpo_ray.errors import AdaGRPOError


def main(path: Path) -> None:
    """Generate the problems that standard input requests, and write them to `path` in one piece."""
    settings, train, held_out = pickle.load(sys.stdin.buffer)
    try:
        found: object = generate(settings, held_out + train)
    except AdaGRPOError as error:
        found = error
    part = path.with_suffix(".part")
    part.write_bytes(pickle.dumps(found))
    os.replace(part, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
