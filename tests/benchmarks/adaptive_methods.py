"""The methods that `make bench-adaptive` compares, each a named list of overrides of the settings of its section.

`adagrpo` has the defaults of the package, and the rows after `adagrpo-published` change one thing about it and keep its
learning rate. `grpo` is the base of all ratios. Rows of other authors' rules follow their papers and public code, and
name all settings that their rules need; `about` names each difference. No two rows have the same settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BASE = "grpo"
"""The method that all others are compared with."""

_ALL = ("skills", "real", "uniform")
_TINY = ("skills", "uniform")
_SKILLS = ("skills",)

_PUBLISHED_SCHEDULE = (
    "algorithm.triggers=["
    "{from_step: 1, rungs: [{times: 2, temperature: 1.0}]}, "
    "{from_step: 100, rungs: [{times: 2, temperature: 1.0}, {times: 2, temperature: 1.1, top_p: 0.99}]}, "
    "{from_step: 300, rungs: [{times: 4, temperature: 1.0}, {times: 4, temperature: 1.1, top_p: 0.99}]}, "
    "{from_step: 700, rungs: [{times: 5, temperature: 1.0}, {times: 6, temperature: 1.1, top_p: 0.99}, "
    "{times: 5, temperature: 1.3, top_p: 0.97}]}]"
)

_RUNG_AT_BASE = "algorithm.triggers=[{from_step: 1, rungs: [{temperature: 1.0}]}]"


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    - `about`: one sentence for the page.
    - `overrides`: changes of the settings of the section.
    - `sections`: the sections that have this row.
    - `drawn`: whether the curves show it.
    - `rate_of`: the method whose tuned learning rate it has; None: it is tuned itself.
    """

    about: str
    overrides: tuple[str, ...] = ()
    sections: Sequence[str] = _ALL
    drawn: bool = False
    rate_of: str | None = None


def _changed(about: str, overrides: tuple[str, ...], sections: Sequence[str], drawn: bool = False) -> Method:
    """The defaults of the package with one change, at their learning rate."""
    return Method(about, overrides, sections, drawn, rate_of="adagrpo")


METHODS: dict[str, Method] = {
    "grpo": Method("GRPO: every group is trained on as it is, once.", ("algorithm.name=grpo",), drawn=True),
    "dapo": Method(
        "DAPO's dynamic sampling with its clip range (arXiv 2503.14476): groups of equal rewards are replaced.",
        ("algorithm.name=dapo", "algorithm.loss.kind=dapo", "algorithm.loss.epsilon_high=0.28"),
        drawn=True,
    ),
    "pilot-commit": Method(
        "Pilot-Commit (arXiv 2605.26606): 4 pilots, then 12 more completions if the pilots differ, all 16 trained on; "
        "with 4 pilots its bounds, 0.125 and 0.75, mean that. The published rule samples the 12 in a later step, fills "
        "up a step that has few such groups, and drops prompts for good whose pilots are all correct.",
        (
            "algorithm.pilot_size=4",
            "algorithm.group_size=16",
            "algorithm.triggers=[]",
            "algorithm.on_exhausted=drop",
            "algorithm.allocation.enabled=false",
            "algorithm.train_on=all",
            "algorithm.advantage_scale=std",
            "algorithm.num_iterations=1",
            "algorithm.num_mini_batches=1",
            "algorithm.loss.epsilon_high=0.28",
        ),
        drawn=True,
    ),
    "reinforce-ada": Method(
        "Reinforce-Ada, balanced (arXiv 2510.04996): at most 4 rounds of 8 completions, until 4 are correct and 4 "
        "wrong; 8 are trained on, with the reward minus the mean of all rounds as advantage. Its code trains on 4.",
        (
            "algorithm.group_size=8",
            "algorithm.triggers=[{from_step: 1, rungs: [{times: 3, temperature: 1.0}]}]",
            "algorithm.resample=immediate",
            "algorithm.criterion.kind=balanced",
            "algorithm.allocation.enabled=false",
            "algorithm.train_on=balanced",
            "algorithm.advantage_scale=none",
            "algorithm.advantage_statistics=all",
            "algorithm.num_iterations=1",
            "algorithm.num_mini_batches=1",
            "algorithm.loss.epsilon_high=0.28",
        ),
        drawn=True,
    ),
    "grpo-half-prompts": Method(
        "GRPO with half of the prompts in a step.",
        ("algorithm.name=grpo", "algorithm.prompts_per_step=8"),
        _SKILLS,
    ),
    "adagrpo": Method("The defaults of this package.", drawn=True),
    "adagrpo-published": Method(
        "The published rule of adaGRPO with its schedule: a failing group is sampled again at once, on a ladder that "
        "grows with the steps; the last attempt is trained on, with the statistics of all attempts. The published one "
        "has groups of 4 and a KL term.",
        (
            _PUBLISHED_SCHEDULE,
            "algorithm.resample=immediate",
            "algorithm.allocation.enabled=false",
            "algorithm.train_on=last",
            "algorithm.advantage_scale=std",
            "algorithm.advantage_statistics=all",
            "algorithm.num_iterations=1",
            "algorithm.num_mini_batches=1",
        ),
        drawn=True,
    ),
    "adagrpo-base-temperature": _changed(
        "The resample has the parameters of the first attempt, not hotter ones.",
        (_RUNG_AT_BASE,),
        _SKILLS,
        drawn=True,
    ),
    "adagrpo-every-rung": _changed(
        "Failing groups climb the ladder, and hard prompts start on it, whether or not its rungs pay.",
        ("algorithm.allocation.judge_rungs=false",),
        _SKILLS,
    ),
    "adagrpo-no-resample": _changed("Failing groups are not sampled again.", ("algorithm.triggers=[]",), _SKILLS),
    "adagrpo-immediate": _changed("Resamples in the same step.", ("algorithm.resample=immediate",), _SKILLS),
    "adagrpo-statistics-last": _changed(
        "Advantages from the rewards of the last attempt.", ("algorithm.advantage_statistics=last",), _SKILLS
    ),
    "adagrpo-uniform": _changed(
        "All groups have the same size, and no prompt is left out.", ("algorithm.allocation.enabled=false",), _TINY
    ),
    "adagrpo-replaced": _changed(
        "Other prompts take the places of those that are left out.",
        ("algorithm.allocation.replace_left_out=true",),
        _SKILLS,
    ),
    "adagrpo-hopeless": _changed(
        "Prompts that nearly always fail are left out like solved ones, three times out of four.",
        ("algorithm.allocation.hopeless_below=0.05",),
        _SKILLS,
    ),
    "adagrpo-one-pass": _changed("One pass over each batch.", ("algorithm.num_iterations=1",), _SKILLS),
    "adagrpo-whole-batch": _changed(
        "Updates on the whole batch, one in each pass.", ("algorithm.num_mini_batches=1",), _SKILLS
    ),
    "adagrpo-one-update": _changed(
        "One update on each batch.", ("algorithm.num_iterations=1", "algorithm.num_mini_batches=1"), _SKILLS
    ),
    "adagrpo-pilots": _changed(
        "Four pilots first; four more completions if some of them are correct and some wrong.",
        ("algorithm.pilot_size=4", "algorithm.allocation.min_group=8"),
        _SKILLS,
    ),
    "adagrpo-train-last": _changed(
        "Trained on all completions of the last attempt.", ("algorithm.train_on=last",), _SKILLS
    ),
    "adagrpo-scale-mean": _changed(
        "MaxRL: advantages over the mean of their group.", ("algorithm.advantage_scale=mean",), _SKILLS
    ),
    "adagrpo-unlabelled": _changed(
        "The class of a prompt is hidden, so that only its own results can size its groups.",
        ("data.columns.difficulty=null",),
        _SKILLS,
        drawn=True,
    ),
}


def methods_of(section: str) -> list[str]:
    """The names of the methods of a section, in the order of its table."""
    return [name for name, method in METHODS.items() if section in method.sections]
