"""Settings of benchmarks: published evaluation sets, by name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adagrpo_ray.config.section import Location, PositiveInt, Section

BenchmarkName = Literal[
    "gsm8k",
    "math500",
    "aime24",
    "aime25",
    "amc23",
    "minerva_math",
    "olympiadbench",
    "gpqa_diamond",
    "mmlu_pro",
]


class BenchmarkSettings(Section):
    """One benchmark. A name alone stands for the benchmark with the other settings null."""

    name: BenchmarkName = Field(..., description="name of the benchmark, as in docs/evaluate.md")
    path: Location | None = Field(
        None,
        description="copy on this machine with the columns of the Hub's data set: a file, a pattern or a folder; null: "
        "from the Hub",
    )
    limit: PositiveInt | None = Field(
        None, description="number of its problems, the same ones in every run; null: all of them"
    )
    samples: PositiveInt | None = Field(
        None, description="completions of each problem; null: the usual number, or 1 at temperature 0"
    )
