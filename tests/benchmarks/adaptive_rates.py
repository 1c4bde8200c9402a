"""Success rates of the base models of the benchmark, by difficulty class: the action --rates of adaptive.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import skills
import skills_model
from adaptive_sections import REAL, SKILLS, Section, base_run, configure, model_of, prepare
from adaptive_tasks import CANDIDATES

from adagrpo_ray.algorithm.estimators import wilson
from adagrpo_ray.cluster.connecting import connect
from adagrpo_ray.config import Config
from adagrpo_ray.config.reading import changed
from adagrpo_ray.runs import EvaluationRecord
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.actors import actors
from adagrpo_ray.training.learners import Learners
from adagrpo_ray.training.preflight import check

SAMPLES_OF_A_SKILL = 2000
SAMPLES, PROMPTS_OF_A_CANDIDATE = 4, 32
"""Completions of each prompt, and prompts of each candidate for the section `real`."""


def settings(section: Section, case: str, folder: Path) -> Config:
    """The settings of a case, evaluated with more samples; for `real` on all candidates."""
    overrides = [f"evaluation.samples={SAMPLES}"]
    if section is REAL:
        overrides += [
            f"reasoning_gym.tasks=[{', '.join(CANDIDATES)}]",
            f"data.eval_prompts={PROMPTS_OF_A_CANDIDATE * len(CANDIDATES)}",
            f"data.train_prompts={len(CANDIDATES)}",
        ]
    return changed(configure(base_run(section, case), folder), overrides)


def measure(config: Config) -> EvaluationRecord:
    """Evaluate the base model at temperature 1, on rollout actors as in a run."""
    inputs = check(config)
    with connect(config, inputs.joined) as placement, actors(config, placement, inputs, Stop()) as running:
        learners = Learners(running.learners, Stop(), print)
        learners.sync(0)
        return learners.evaluate(0)


def table(rates: Mapping[str, float], samples: int, wanted: Mapping[str, float]) -> str:
    """A Markdown table of success rates over `samples` completions each, with 95 % intervals; the lowest rate first.

    The intervals are Wilson's for independent samples. Several samples of one prompt are not, so that theirs are a
    little narrow.
    """
    lines = [f"| class | success rate | 95 % interval |{' wanted |' if wanted else ''}"]
    lines.append("| --- " * (4 if wanted else 3) + "|")
    for name, rate in sorted(rates.items(), key=lambda item: item[1]):
        low, high = wilson(round(rate * samples), samples)
        cells = [name, f"{rate:.4f}", f"{low:.4f} to {high:.4f}", *([f"{wanted[name]:g}"] if wanted else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def print_rates(section: Section, folder: Path) -> None:
    """Measure the success rates of each base model of a section, and print them; skills are sampled without vLLM."""
    if section is SKILLS:
        prepare(section.name, folder)
        wanted = {skill.name: skill.rate for skill in skills.SKILLS}
        rates = skills_model.success_rates(model_of(folder), SAMPLES_OF_A_SKILL)
        print(f"\n{section.name}\n\n{table(rates, SAMPLES_OF_A_SKILL, wanted)}", flush=True)
        return
    for case in section.cases:
        record = measure(settings(section, case, folder))
        rates = dict(record.accuracy_by_difficulty)
        print(f"\n{section.name} {case}\n\n{table(rates, record.samples // len(rates), {})}", flush=True)
