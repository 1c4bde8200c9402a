"""Merge an adapter into a full model, and push either to the Hub: python launch/export.py RUN --out FOLDER"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a checkout that is not installed

from ending import ended, not_empty

from adagrpo_ray.errors import ConfigError
from adagrpo_ray.export.exporting import ExportRequest, export
from adagrpo_ray.export.push import Push, check_name, plan_push, push
from adagrpo_ray.storage import places as storage

DTYPES = ("float32", "bfloat16", "float16")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/export.py",
        description="Merge the adapter of a run into its base model, as a folder that Transformers and vLLM load.",
        epilog="The merge takes little memory: one file of the result (2 GiB) and one weight in float32. The check "
        "loads the model in float32, first with the adapter, then merged: about 8 GiB for 1.7 billion parameters.",
    )
    parser.add_argument(
        "source",
        metavar="RUN|ADAPTER",
        help="a run folder, a checkpoint, or the folder of a PEFT adapter, each a path or a URL; with --push and "
        "without --out also a folder made by an export",
    )
    parser.add_argument("--out", metavar="FOLDER", help="the folder to create; it must not exist, or be empty")
    parser.add_argument("--base", metavar="MODEL", help="base model, a folder or Hub name (default: the run's)")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the merged weights (default: the base model's)")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the merged model with the adapter, and save nothing if they differ (default: yes)",
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="list the files to upload to this model repository of the Hub: the export, or without --out the adapter",
    )
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--yes", action="store_true", help="really upload, with the token of HF_TOKEN or of a login")
    options = parser.parse_args(arguments)
    if options.out is None and options.push is None:
        parser.error("give --out FOLDER to merge, or --push OWNER/NAME to push an adapter or an earlier export")
    if options.push is None and (options.private or options.yes):
        parser.error("--private and --yes need --push OWNER/NAME")
    return options


def to_push(source: str) -> Path:
    """The folder to push if nothing is exported: the adapter of a run, or the source itself."""
    if storage.is_url(source):
        raise ConfigError(f"{source} is a URL; give --out FOLDER to export it, or copy it here")
    folder = Path(storage.plain(source))
    return folder / "adapter" if (folder / "adapter").is_dir() else folder


def show(planned: Push, *, really: bool) -> None:
    kind = "private" if planned.private else "public"
    print(f"{'pushing' if really else 'would push'} to https://huggingface.co/{planned.repository} ({kind} if new):")
    for name, size in planned.files:
        print(f"  {size:>14,}  {name}")
    print(f"  {sum(size for _, size in planned.files):>14,}  bytes in one commit")
    if planned.left:
        print(f"  not uploaded: {', '.join(planned.left)}")
    if not really:
        print("nothing was sent; give the same command with --yes to push (without --out, since the export is done)")


def run(options: argparse.Namespace) -> None:
    folder = None
    not_empty(options, "SOURCE", "--out", "--base", "--push")
    storage.check(options.source, "RUN|ADAPTER")
    if options.push is not None:
        check_name(options.push)  # before the export, which takes a while
    if options.out is not None:
        if storage.is_url(options.out):
            raise ConfigError(f"--out {options.out} is a URL; give a folder of this machine")
        request = ExportRequest(options.source, Path(options.out), options.base, options.dtype, options.check)
        folder = export(request, print)
        print(f"model: {folder}")
    if options.push is not None:
        planned = plan_push(folder or to_push(options.source), options.push, private=options.private)
        show(planned, really=options.yes)
        if options.yes:
            print(f"pushed: {push(planned)}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return ended(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
