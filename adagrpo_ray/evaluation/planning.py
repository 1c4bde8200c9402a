"""Plans an evaluation: finds and checks models, problems and settings, and starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adagrpo_ray.config.benchmarks import BenchmarkSettings
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.errors import ConfigError, DataError
from adagrpo_ray.evaluation.models import OPTION, Candidate, Place, candidates, locate, served
from adagrpo_ray.evaluation.settings import benchmark_settings, counting_settings, for_evaluation, prompt_settings
from adagrpo_ray.lora.adapters import read_adapter
from adagrpo_ray.training.preflight import Inputs, check
from adagrpo_ray.types import Prompt

Split = Literal["held_out", "train", "all"]


@dataclass(frozen=True, eq=False)
class Part:
    """A set of problems with results of its own.

    name: that of the split of the data, or of the benchmark.
    samples: completions of each problem.
    settings: those that results depend on.
    """

    name: str
    prompts: tuple[Prompt, ...]
    samples: int
    settings: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked evaluation, of which nothing has been started.

    parts: the problems of every model: those of a split of the data, or of benchmarks.
    """

    config: Config
    inputs: Inputs
    parts: tuple[Part, ...]
    models: tuple[Candidate, ...]

    @property
    def benchmarks(self) -> bool:
        """Whether the problems are those of benchmarks."""
        return bool(self.inputs.prompts.benchmarks)

    def folder(self, out: Path, part: Part) -> Path:
        """The folder of a part's results in `out`: each benchmark has its own."""
        return out / part.name if self.benchmarks else out


def plan(
    config: Config,
    adapters: Sequence[str],
    *,
    base: bool,
    split: Split,
    limit: int | None,
    notify: Callable[[str], None],
    benchmarks: tuple[BenchmarkSettings, ...] = (),
) -> Plan:
    """Find and check models, problems and rewards. Raises an AdaGRPOError if one of them cannot be used.

    adapters: as `locate` takes them.
    base: whether to evaluate the base model too.
    limit: the number of prompts of the split, from the first one; None for all.
    notify: receives warnings and notices.
    benchmarks: evaluated in place of the split, if there are any.
    """
    if not adapters and not base:
        raise ConfigError("there is nothing to evaluate: give --adapter, or leave out --no-base")
    places = [locate(given, notify) for given in adapters]
    found = [read_adapter(place.folder, OPTION) for place in places]
    config = served(for_evaluation(config, benchmarks), found)
    inputs = check(config, training=False)
    sets = inputs.prompts
    for note in (*sets.notes, *inputs.notices):
        notify(note)
    if benchmarks:
        parts = tuple(
            Part(b.name, b.prompts, b.samples, benchmark_settings(config, inputs.model_path, b, sets.template))
            for b in sets.benchmarks
        )
    else:
        parts = (_of_split(config, inputs, split, limit),)
        for place in places:
            _warn_of_other_data(place, config, notify)
    named = [(place.name, adapter) for place, adapter in zip(places, found, strict=True)]
    models = candidates(config.model, config.rollout, inputs.model_path, named, base, notify)
    return Plan(config, inputs, parts, models)


def _of_split(config: Config, inputs: Inputs, split: Split, limit: int | None) -> Part:
    """The first `limit` problems of a split of the data. Raises DataError if there are none."""
    sets: PromptSets = inputs.prompts
    prompts = {"held_out": sets.held_out, "train": sets.train, "all": (*sets.held_out, *sets.train)}[split]
    if not prompts:
        key = "data.eval_prompts" if split == "held_out" else "data.train_prompts"
        raise DataError(f"--split {split}: {key} leaves no prompt there; raise it, or give --split all")
    settings = {**counting_settings(config, inputs.model_path), **prompt_settings(sets)}
    return Part(split, prompts[:limit], config.evaluation.samples, settings)


def _warn_of_other_data(place: Place, config: Config, notify: Callable[[str], None]) -> None:
    """Warn if the adapter's run may have trained on prompts that are held out here."""
    if place.config is None:
        return
    try:
        theirs = fixed_settings(Config.load(place.config))
    except ConfigError:  # written by another version of this program, which cannot be compared
        return
    ours = fixed_settings(config)
    keys = ["run.seed", *(key for key in {**ours, **theirs} if key.startswith(("data.", "arithmetic.")))]
    other = [key for key in keys if ours.get(key) != theirs.get(key) and key != "data.shuffle"]
    if other:
        notify(
            f"warning: the run of {place.folder} had other values of {', '.join(other)}: it may have been "
            "trained on prompts that are held out here"
        )
