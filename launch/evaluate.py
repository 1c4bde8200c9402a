"""Evaluate a base model and adapters side by side: python launch/evaluate.py --adapter runs/NAME [key=value ...]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a checkout that is not installed

from ending import Exit, ended, not_empty
from train import DEFAULT

from adagrpo_ray.config import Config
from adagrpo_ray.config.listing import settings
from adagrpo_ray.errors import ConfigError, StoppedError

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
        default="held_out",
        help="which prompts: those held out from training, those trained on, or both (default: held_out)",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N of these prompts")
    parser.add_argument(
        "-k", "--samples", type=_count, metavar="K", help="completions of each problem: sets evaluation.samples"
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


def evaluate(options: argparse.Namespace, stop: Exit) -> None:
    from adagrpo_ray.evaluation.comparison import compare
    from adagrpo_ray.evaluation.execution import execute, finished, plan, unfinished
    from adagrpo_ray.evaluation.models import locate
    from adagrpo_ray.evaluation.progress_line import EvaluationProgress
    from adagrpo_ray.evaluation.results import ResultFile
    from adagrpo_ray.evaluation.table import JSON, MARKDOWN, report, save
    from adagrpo_ray.runs.terminal import is_terminal, rich_console

    not_empty(options, "--config", "--adapter", "--out")
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
    todo = plan(config, options.adapter, base=options.base, split=options.split, limit=options.limit, notify=notify)
    notify(f"{len(todo.prompts)} problems ({options.split}), {len(todo.models)} models, results in {out}")
    with ResultFile(out, todo.settings) as results:
        with EvaluationProgress(len(todo.models), unfinished(todo, results), console, live=live) as progress:
            try:
                execute(todo, results, progress, stop)
            except StoppedError as error:
                every = len(todo.models) * len(todo.prompts)
                raise StoppedError(
                    f"{error}; {every - unfinished(todo, results)} of {every} results are in {results.path}: give the "
                    "same command again to continue"
                ) from None
        comparison = compare([(m.name, m.folder, m.digest, finished(todo, results, m)) for m in todo.models])
        save(out, comparison, todo.settings)
    console.print()
    for part in report(comparison, console.width):
        console.print(part, soft_wrap=isinstance(part, str))
    notify(f"results: {results.path}, {out / JSON}, {out / MARKDOWN}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    stop = Stopping()

    def work() -> None:
        with stop.on_signals():
            evaluate(options, stop)

    return ended(work, stop)


if __name__ == "__main__":
    sys.exit(main())
