"""Success rates of the base models of the benchmark, by difficulty class: the action --rates of adaptive.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import skills
from adaptive_sections import REAL, SKILLS, Section, base_run, configure, prepare
from adaptive_tasks import CANDIDATES

from adagrpo_ray.algorithm.estimators import wilson
from adagrpo_ray.cluster.connecting import connect
from adagrpo_ray.config import Config
from adagrpo_ray.config.reading import changed
from adagrpo_ray.extensions.given import Given
from adagrpo_ray.runs import EvaluationRecord
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.actors import actors
from adagrpo_ray.training.learners import Learners
from adagrpo_ray.training.preflight import check

SAMPLES = {SKILLS.name: 64, REAL.name: 4}
"""Completions of each prompt, by section; 8 in others."""
PROMPTS_OF_A_CANDIDATE = 32


def settings(section: Section, case: str, folder: Path) -> Config:
    """The settings of a case, evaluated with more samples; for `real` on all candidates."""
    overrides = [f"evaluation.samples={SAMPLES.get(section.name, 8)}", "evaluation.every=0"]
    if section is REAL:
        overrides += [
            f"reasoning_gym.tasks=[{', '.join(CANDIDATES)}]",
            f"data.eval_prompts={PROMPTS_OF_A_CANDIDATE * len(CANDIDATES)}",
            f"data.train_prompts={len(CANDIDATES)}",
        ]
    return changed(configure(base_run(section, case), folder), overrides)


def measure(config: Config, given: Given) -> EvaluationRecord:
    """Evaluate the base model at temperature 1, on rollout actors as in a run."""
    inputs = check(config, given)
    with connect(config, inputs.joined) as placement, actors(config, placement, inputs, Stop()) as running:
        learners = Learners(running.learners, Stop(), print)
        learners.sync(0)
        return learners.evaluate(0)


def table(record: EvaluationRecord, wanted: Mapping[str, float]) -> str:
    """A Markdown table of the success rates with 95 % intervals, and the wanted ones if there are any.

    The intervals are Wilson's for independent samples; those of the same prompt are not, so they are a little narrow.
    """
    each = record.samples // len(record.accuracy_by_difficulty)
    lines = [f"| class | success rate | 95 % interval |{' wanted |' if wanted else ''}"]
    lines.append("| --- " * (4 if wanted else 3) + "|")
    for name, accuracy in sorted(record.accuracy_by_difficulty.items(), key=lambda item: item[1]):
        low, high = wilson(round(accuracy * each), each)
        cells = [name, f"{accuracy:.4f}", f"{low:.4f} to {high:.4f}", *([f"{wanted[name]:g}"] if wanted else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def print_rates(section: Section, folder: Path, given: Given) -> None:
    """Measure the success rates of each base model of a section, and print them."""
    prepare(section.name, folder)
    wanted = {skill.name: skill.rate for skill in skills.SKILLS} if section is SKILLS else {}
    for case in section.cases:
        record = measure(settings(section, case, folder), given)
        print(f"\n{section.name} {case}: {record.accuracy:.4f} of {record.samples} completions\n", flush=True)
        print(table(record, wanted), flush=True)
