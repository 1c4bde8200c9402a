"""Evaluate a base model and adapters side by side: python launch/evaluate.py --adapter runs/NAME [key=value ...]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a checkout that is not installed

from ending import Exit, ended, not_empty
from train import DEFAULT

from adagrpo_ray.config import Config
from adagrpo_ray.config.benchmarks import BenchmarkName, BenchmarkSettings
from adagrpo_ray.config.listing import settings
from adagrpo_ray.config.reading import changed
from adagrpo_ray.errors import ConfigError, StoppedError

if TYPE_CHECKING:
    from rich.console import Console

    from adagrpo_ray.evaluation.comparison import Comparison
    from adagrpo_ray.evaluation.planning import Plan

LOG_WIDTH = 240  # characters of tables in a log, which has no window


class Stopping(Exit):
    """An `Exit` with the notice of an evaluation."""

    notice = b"stopping: finished problems are kept; once more to leave at once\n"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    lines = [f"  {key}  (default: {default})\n      {text}" for key, default, text in settings()]
    parser = argparse.ArgumentParser(
        prog="launch/evaluate.py",
        description="Evaluate a base model and any number of adapters on the same problems, side by side.",
        usage="%(prog)s [options] [--adapter PATH ...] [key=value ...]",
        epilog="The same command continues an evaluation that was stopped or killed.\n\n"
        "settings, as overrides or in the YAML file (those of learner and algorithm have no effect here):\n"
        + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="PATH",
        help="an adapter: a run folder, a checkpoint, the file 'best' in a folder of checkpoints, or the folder of a "
        "PEFT adapter; repeat the option for more adapters",
    )
    parser.add_argument(
        "--base",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="evaluate the base model too, before the adapters (default); --no-base: only the adapters",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of settings (default: the config.yaml of the first adapter's run, else tiny-cpu.yaml)",
    )
    parser.add_argument(
        "--split",
        choices=("held_out", "train", "all"),
        help="which prompts: those held out from training, those trained on, or both (default: held_out)",
    )
    parser.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME[=PATH][,...]",
        help="benchmarks in place of the split, from the Hub or from a copy at PATH: "
        + ", ".join(get_args(BenchmarkName)),
    )
    parser.add_argument(
        "--limit",
        type=_count,
        metavar="N",
        help="only the first N of these prompts; with --benchmark N problems of each, the same ones every time",
    )
    parser.add_argument(
        "-k",
        "--samples",
        type=_count,
        metavar="K",
        help="completions of each problem: sets evaluation.samples (default for a benchmark: its usual number)",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="folder of the results, new or to be continued (default: evaluations/ and the name of the run or config)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    return parser.parse_intermixed_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def benchmarks(options: argparse.Namespace, config: Config) -> tuple[BenchmarkSettings, ...]:
    """The benchmarks of --benchmark. One that `config` has a copy of is read from there.

    Raises ConfigError if a name is unknown or given twice, or if greedy completions would all be the same.
    """
    if not options.benchmark:
        return ()
    if options.split is not None:
        raise ConfigError(f"--split {options.split} selects prompts of the data, and --benchmark others; leave one out")
    given = ",".join(options.benchmark)
    copies: dict[str, str | None] = {one.name: one.path for one in config.evaluation.benchmarks}
    named = [one.strip().partition("=") for one in given.split(",")]
    entries = [
        {
            "name": name,
            "path": path if equals else copies.get(name),
            "limit": options.limit,
            "samples": options.samples,
        }
        for name, equals, path in named
    ]
    try:
        return changed(config, {"evaluation.benchmarks": entries}).evaluation.benchmarks
    except ConfigError as error:
        raise ConfigError(f"--benchmark {given}: {error}") from None


def evaluate(options: argparse.Namespace, stop: Exit) -> None:
    from adagrpo_ray.evaluation import overview, table
    from adagrpo_ray.evaluation.models import locate
    from adagrpo_ray.evaluation.planning import plan
    from adagrpo_ray.evaluation.results import RESULTS
    from adagrpo_ray.runs.terminal import is_terminal, rich_console

    not_empty(options, "--config", "--adapter", "--benchmark", "--out")
    if options.out is not None and "://" in options.out:
        raise ConfigError(f"--out {options.out} is a URL; give a folder of this machine")
    first = locate(options.adapter[0]) if options.adapter else None
    file = Path(options.config) if options.config else (first and first.config) or DEFAULT
    samples = [] if options.samples is None else [f"evaluation.samples={options.samples}"]
    config = Config.load(file, [*options.overrides, *samples])
    name = file.resolve().parent.name if file.name == "config.yaml" else file.stem
    out = Path(options.out or Path("evaluations", name))
    live = is_terminal(sys.stdout)
    console = rich_console(sys.stdout, live=live, width=None if live else LOG_WIDTH)

    def notify(text: str) -> None:
        console.print(text, soft_wrap=True)

    notify(f"checking models, data and rewards; settings of {file}")
    todo = plan(
        config,
        options.adapter,
        base=options.base,
        split=options.split or "held_out",
        limit=options.limit,
        notify=notify,
        benchmarks=benchmarks(options, config),
    )
    for part in todo.parts:
        notify(
            f"{len(part.prompts)} problems ({part.name}), {len(todo.models)} models, results in "
            f"{todo.folder(out, part)}"
        )
    comparisons = compared(todo, out, console, live, stop)
    console.print()
    if todo.benchmarks:
        parts = overview.report(comparisons, console.width)
        files = f"{out / overview.JSON}, {out / overview.MARKDOWN}, and the folders of the benchmarks in {out}"
    else:
        parts = table.report(comparisons[todo.parts[0].name], console.width)
        files = f"{out / RESULTS}, {out / table.JSON}, {out / table.MARKDOWN}"
    for line in parts:
        console.print(line, soft_wrap=isinstance(line, str))
    notify(f"results: {files}")


def compared(todo: Plan, out: Path, console: Console, live: bool, stop: Exit) -> dict[str, Comparison]:
    """Evaluate, write the results into `out`, and return the comparison of the models on each part of the problems."""
    from adagrpo_ray.evaluation import overview, table
    from adagrpo_ray.evaluation.comparison import compare
    from adagrpo_ray.evaluation.execution import execute, finished, unfinished
    from adagrpo_ray.evaluation.progress_line import EvaluationProgress
    from adagrpo_ray.evaluation.results import ResultFile

    with ExitStack() as opened:
        files = {
            part.name: opened.enter_context(ResultFile(todo.folder(out, part), part.settings)) for part in todo.parts
        }
        rounds = len(todo.models) * len(todo.parts)
        with EvaluationProgress(rounds, unfinished(todo, files), console, live=live) as progress:
            try:
                execute(todo, files, progress, stop)
            except StoppedError as error:
                every = len(todo.models) * sum(len(part.prompts) for part in todo.parts)
                places = ", ".join(str(results.path) for results in files.values())
                raise StoppedError(
                    f"{error}; {every - unfinished(todo, files)} of {every} results are in {places}: give the "
                    "same command again to continue"
                ) from None
        comparisons = {
            part.name: compare([(m.name, m.folder, m.digest, finished(part, files, m)) for m in todo.models])
            for part in todo.parts
        }
        for part in todo.parts:
            table.save(todo.folder(out, part), comparisons[part.name], part.settings)
        if todo.benchmarks:
            overview.save(out, comparisons)
    return comparisons


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    stop = Stopping()

    def work() -> None:
        with stop.on_signals():
            evaluate(options, stop)

    return ended(work, stop)


if __name__ == "__main__":
    sys.exit(main())
