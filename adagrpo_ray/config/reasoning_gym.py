"""Settings of the tasks of the package reasoning-gym."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pydantic import Field, JsonValue

from adagrpo_ray.config.section import Count, Section

REASONING_GYM = "reasoning_gym"
"""Name of the data source, of its settings and of its reward function."""


class GymTaskSettings(Section):
    """One task of reasoning-gym and its share of the prompts."""

    name: str = Field(..., min_length=1, description="name of the task, such as chain_sum")
    weight: float = Field(1.0, ge=0.0, le=1e6, description="share of the prompts, relative to the other weights")
    config: dict[str, JsonValue] = Field(
        {}, description="settings of the task by name, such as max_terms: 2; the others keep their defaults"
    )
    difficulty: str | None = Field(
        None,
        min_length=1,
        description="entry of a problem's metadata that divides the task into difficulty classes, such as num_terms; "
        "null: one class",
    )


class ReasoningGymSettings(Section):
    """Generated problems of reasoning-gym, with data.source=reasoning_gym; needs the extra `real`."""

    tasks: tuple[GymTaskSettings, ...] = Field((), description="the tasks that prompts are drawn from")
    examples: int = Field(
        0,
        ge=0,
        le=16,
        description="solved problems of the same task before each problem, as earlier turns, for models that do not "
        "follow instructions on the format of the answer",
    )
    seed: Count = Field(0, description="seed of the problems")

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts of tasks: a setting that another section has, and a task given twice."""
        for number, task in enumerate(self.tasks):
            if given := {"seed", "size"} & set(task.config):
                key = given.pop()
                other = "reasoning_gym.seed" if key == "seed" else "data.train_prompts and data.eval_prompts"
                yield f"reasoning_gym.tasks.{number}.config.{key} is set by {other}; remove it"
        counted = Counter((task.name, repr(sorted(task.config.items()))) for task in self.tasks)
        if double := [name for (name, _), count in counted.items() if count > 1]:
            yield f"reasoning_gym.tasks names {double[0]!r} twice with the same config; give it once, with one weight"
