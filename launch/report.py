"""Make the report of a run, or of several side by side: python launch/report.py RUN [RUN ...]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a checkout that is not installed

from ending import ended, not_empty

from adagrpo_ray.errors import ConfigError
from adagrpo_ray.storage import places as storage


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/report.py",
        description="Make the report of a run, or of several runs in the same figures: one HTML file, and the figures "
        "as PNG. Runs may still be in progress.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder: a path, or a URL as in s3://bucket/runs/NAME"
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="folder for report.html and plots/, a path or a URL (default: the run folder; ./report for several runs)",
    )
    parser.add_argument(
        "--interval", type=int, metavar="N", help="steps of one bar (default: a tenth of the longest run)"
    )
    return parser.parse_args(arguments)


def report(options: argparse.Namespace) -> None:
    not_empty(options, "RUNS", "--out")
    if options.interval is not None and options.interval < 1:
        raise ConfigError(f"--interval={options.interval} must be a number of steps, 1 or more")
    from adagrpo_ray.reports import read, write_report

    for place in options.runs:
        storage.check(place, "RUN")
    if options.out is not None:
        storage.check(options.out, "--out")
    runs = [read(place) for place in options.runs]
    out = options.out or (options.runs[0] if len(runs) == 1 else "report")
    print(f"report: {write_report(runs, out, options.interval)}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return ended(lambda: report(options))


if __name__ == "__main__":
    sys.exit(main())
