"""The sections of `make bench-adaptive`: tasks, sizes of runs, targets, and the settings of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import skills
import skills_model
from adaptive_methods import BASE, METHODS
from adaptive_tasks import MIX

from adagrpo_ray.config import Config

TUNING_SEEDS = (100, 101)


@dataclass(frozen=True)
class Section:
    """A task, and how its runs are made.

    - `cases`: base models by name, with their overrides; a section has one or several.
    - `steps`: the most steps of a run, by case.
    - `tokens`: generated tokens after which a run ends at its next evaluation; None: it does all of its steps.
    - `enough`: smoothed accuracy at which a final run ends; None: there is no such accuracy.
    - `target`: held-out accuracy whose cost is measured; None: the one that GRPO reaches at the end of its runs.
    - `rates`: learning rates that the tuning begins with; a single one is that of all methods, without tuning.
    - `highest`: the highest learning rate that is tried; None: there is no such bound.
    - `tuned_on`: the case of the tuning runs.
    - `tuning_seeds`: their seeds; none without tuning.
    - `seeds`: number of final runs of each method and case.
    """

    name: str
    about: str
    config: str
    overrides: tuple[str, ...]
    cases: Mapping[str, tuple[str, ...]]
    steps: Mapping[str, int]
    target: float | None
    rates: tuple[str, ...]
    tuned_on: str
    seeds: int
    tokens: int | None = None
    enough: float | None = None
    highest: str | None = None
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS


@dataclass(frozen=True)
class Run:
    """One run: the method and learning rate in a case of a section, with its seed.

    It ends once its accuracy is `until`; None: it does all of its steps.
    """

    section: str
    case: str
    method: str
    rate: str
    seed: int
    until: float | None = None


_EVERY_RUN = (
    "learner.schedule=constant",  # so that a run does not depend on the number of its steps
    "learner.cpus=2",  # learner and rollout actor take turns, so that each can use both cores
    "rewards.check_prompts=0",  # the same prompts in every run
    "run.samples_per_step=0",
    "evaluation.samples=1",
)

TRAINED_BUNDLES, HELD_OUT_BUNDLES = 32, 30
"""Prompts of each skill: few enough that a run sees each of them several times."""

SKILLS = Section(
    name="skills",
    about=(
        "A tiny model with ten independent skills, whose success rates are "
        f"{', '.join(f'{100 * skill.rate:g}' for skill in skills.SKILLS)} %. Prompts of all skills are mixed, "
        f"{TRAINED_BUNDLES} of each to train on and {HELD_OUT_BUNDLES} held out. The accuracy is the mean over them. "
        "No learning rate above 3e-3 is tried: at 1e-2 the accuracy of grpo and of adagrpo falls to 0."
    ),
    config="launch/configs/tiny-cpu.yaml",
    overrides=(
        *_EVERY_RUN,
        "rewards.functions=[{function: same_text}]",
        "data.columns={difficulty: skill, problem: bundle}",
        "data.chat_template=none",
        f"data.train_prompts={TRAINED_BUNDLES * len(skills.SKILLS)}",
        f"data.eval_prompts={HELD_OUT_BUNDLES * len(skills.SKILLS)}",
        f"rollout.max_new_tokens={skills.LONGEST}",
        "rollout.max_num_seqs=256",
        "algorithm.prompts_per_step=16",
        "algorithm.group_size=8",
        "evaluation.every=2",
    ),
    cases={"all": ()},
    steps={"all": 200},
    tokens=40_000,  # those of GRPO in 60 steps
    target=0.8,
    enough=0.85,
    rates=("1e-3", "3e-3"),
    highest="3e-3",  # at 1e-2 the accuracy of grpo and of adagrpo falls to 0 on the tuning seeds
    tuned_on="all",
    seeds=5,
)

REAL = Section(
    name="real",
    about=(
        f"SmolLM2-135M-Instruct in float32 on {len(MIX)} tasks of reasoning-gym, of which it solves 0 to 61 % before, "
        "evaluated with 4 completions of each problem. A final run ends when it reaches the target, except those of "
        "GRPO, which set it. All methods have the learning rate 3e-4. On seed 100 GRPO ended at 0.281 with 1e-4 and at "
        "0.301 with 3e-4. In bfloat16 DAPO ended there at 0.258 with 1e-4 and at 0.328 with 3e-4, Pilot-Commit at "
        "0.270 and 0.324, and GRPO fell to 0.18 with 1e-3. No other rates or methods were tried."
    ),
    config="launch/configs/smollm2-cpu.yaml",
    overrides=(
        *_EVERY_RUN,
        f"reasoning_gym.tasks=[{', '.join(MIX)}]",
        "data.train_prompts=256",
        "data.eval_prompts=64",
        "algorithm.prompts_per_step=16",  # with 8, grpo and adagrpo each lost a task on one of three seeds
        "evaluation.samples=4",
        *("algorithm.num_iterations=null", "algorithm.num_mini_batches=null"),  # the defaults of each method
        "evaluation.every=2",
    ),
    cases={"all": ()},
    steps={"all": 16},  # one epoch
    tokens=15_000,  # a fifth more than those of GRPO
    target=None,
    rates=("3e-4",),  # tuning would take as long as the final runs: two runs for each method
    tuned_on="all",
    seeds=3,
    tuning_seeds=(),
)

_DIGITS = (3, 4)

UNIFORM = Section(
    name="uniform",
    about="The embedded task, in which all prompts have about the same success rate: there is little to allocate.",
    config="launch/configs/tiny-cpu.yaml",
    overrides=(
        *_EVERY_RUN,
        "algorithm.prompts_per_step=8",
        "algorithm.group_size=8",
        "data.eval_prompts=64",
        "evaluation.every=1",
    ),
    cases={
        rate: (f"arithmetic.keep_carry={{{', '.join(f'{digits}: {rate}' for digits in _DIGITS)}}}",)
        for rate in ("0.01", "0.04", "0.20", "0.50")
    },
    steps={"0.01": 40, "0.04": 20, "0.20": 14, "0.50": 20},
    target=0.85,
    enough=0.9,
    rates=("3e-4", "1e-3", "3e-3"),
    tuned_on="0.04",
    seeds=5,
)

SECTIONS: dict[str, Section] = {section.name: section for section in (SKILLS, REAL, UNIFORM)}

DATA = "skills.jsonl"


def model_of(folder: Path) -> Path:
    """The folder of the model of the skills, whose name changes with the model."""
    return folder / "models" / f"skills-{skills_model.recipe_hash()}"


def prepare(section: str, folder: Path) -> None:
    """Build the model and the data of the section in `folder`, unless they exist. Other sections need nothing."""
    if section == SKILLS.name:
        skills_model.build(model_of(folder))
        skills.write_rows(folder / DATA, list(skills.rows(TRAINED_BUNDLES + HELD_OUT_BUNDLES, seed=0)))


@cache
def configure(run: Run, folder: Path) -> Config:
    """The settings of a run; model and data of the skills are in `folder`."""
    section = SECTIONS[run.section]
    built = [f"model.path={model_of(folder)}", f"data.source={folder / DATA}"] if section is SKILLS else []
    return Config.load(
        section.config,
        [
            f"run.seed={run.seed}",
            f"run.steps={section.steps[run.case]}",
            *built,
            *section.overrides,
            *section.cases[run.case],
            f"learner.learning_rate={run.rate}",
            *METHODS[run.method].overrides,
        ],
    )


def base_run(section: Section, case: str) -> Run:
    """A run of the base method, whose settings of model, data and actors are those of all runs of the case."""
    return Run(section.name, case, BASE, section.rates[0], seed=0)
