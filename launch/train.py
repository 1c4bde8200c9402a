"""Train a model with adaptive GRPO: python launch/train.py --config launch/configs/tiny-cpu.yaml [key=value ...]"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a checkout that is not installed

from ending import Exit, ended, not_empty

from adagrpo_ray.config import Config
from adagrpo_ray.config.listing import as_yaml, settings
from adagrpo_ray.errors import ModelError

DEFAULT = Path(__file__).parent / "configs" / "tiny-cpu.yaml"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    lines = [f"  {key}  (default: {default})\n      {text}" for key, default, text in settings()]
    parser = argparse.ArgumentParser(
        prog="launch/train.py",
        description="Train a language model with adaptive GRPO.",
        usage="%(prog)s [--config FILE] [--dry-run] [--resume auto|FOLDER] [key=value ...]",
        epilog="settings, as overrides or in the YAML file:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default=str(DEFAULT), help="YAML file of settings (default: tiny-cpu.yaml)")
    parser.add_argument("--dry-run", action="store_true", help="print settings and placement, start nothing")
    parser.add_argument(
        "--resume",
        metavar="auto|FOLDER",
        help="continue a run: 'auto' for the newest good checkpoint of run.name, or the start if there is none; else "
        "a run folder, a checkpoint, or the file 'best' in a folder of checkpoints, each a path or a URL",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    return parser.parse_intermixed_args(arguments)  # options may be mixed with settings


def dry_run(config: Config) -> None:
    from adagrpo_ray.cluster.device_memory import DeviceMemory, device_memory
    from adagrpo_ray.cluster.placement import Hardware, address, local_hardware, place
    from adagrpo_ray.model.kernels import kernels_here
    from adagrpo_ray.model.shape import read_shape
    from adagrpo_ray.training.memory import describe

    print(as_yaml(config), end="")
    joined = address(config.run)
    memory: DeviceMemory | None = None  # unknown for a cluster that is not joined yet
    if joined is None:
        hardware = local_hardware()
        placement = place(config.rollout, config.learner, hardware, ours=True)
        memory = device_memory(hardware)
        print(f"# placement on this machine ({hardware.cpus:g} CPUs, {hardware.gpus:g} GPUs), in a new Ray:")
    else:
        named = dict.fromkeys((*config.rollout.resources, *config.learner.resources), math.inf)
        placement = place(config.rollout, config.learner, Hardware(math.inf, math.inf, named), ours=False)
        print(f"# placement on the Ray cluster at {joined}, if its nodes have GPUs:")
    print("\n".join(f"#   {line}" for line in placement.lines()))
    try:
        shape = read_shape(config)
        lines = describe(shape, config, placement, memory, kernels_here(config, shape.model_type))
    except ModelError as error:
        lines = [f"not estimated: {error}"]
    print("# estimated memory:")
    print("\n".join(f"#   {line}" for line in lines))


def train(options: argparse.Namespace, stop: Exit) -> None:
    not_empty(options, "--config", "--resume")
    config = Config.load(options.config, options.overrides)
    if options.dry_run:
        dry_run(config)
        return
    from adagrpo_ray.runs import Console
    from adagrpo_ray.training.run import run

    with Console(config.run.steps) as console, stop.on_signals():
        run(config, console, name=Path(options.config).stem, resume=options.resume, stop=stop)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    stop = Exit()
    return ended(lambda: train(options, stop), stop)


if __name__ == "__main__":
    sys.exit(main())
