"""Settings of the allocation: group sizes, first rungs and turns of prompts by earlier results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from adagrpo_ray.config.section import LARGEST_GROUP, GroupSize, PositiveInt, Section, Share


class AllocationSettings(Section):
    """Choice of group size and first rung of a prompt by earlier results of it and of its difficulty class."""

    enabled: bool = Field(True, description="adagrpo: size groups by a posterior of each prompt's success rate")
    rule: Literal["informative", "value"] = Field(
        "informative",
        description="sizes of groups: each large enough to be informative, or prompts_per_step groups share "
        "prompts_per_step * group_size completions (at most the budget) by the value that one more completion has",
    )
    min_group: GroupSize | None = Field(
        None, description="fewest completions of a group; null: half of group_size; rule=value: 2"
    )
    max_group: GroupSize | None = Field(
        None, description="most completions of a group; null: group_size; rule=value: 4 * group_size"
    )
    informative: Share = Field(
        0.8, description="rule=informative: target probability that a group has correct and incorrect completions"
    )
    discount: Share = Field(
        0.7, description="weight of a prompt's results one epoch later, and of those of a class one step later"
    )
    hard_below: Share = Field(0.15, description="prompts with a success rate below this start on the first rung")
    solved_above: Share = Field(0.8, description="prompts with a success rate above this are sampled less often")
    hopeless_below: Share = Field(
        0.0, description="prompts with a success rate below this are sampled less often, too; 0: none"
    )
    solved_every: PositiveInt = Field(
        4, description="solved and hopeless prompts take turns: each is sampled in one of this many epochs"
    )
    judge_rungs: bool = Field(
        True,
        description="use a rung in a difficulty class as often as it is likely to succeed more often there than the "
        "base parameters; if false, always",
    )
    replace_left_out: bool = Field(
        False,
        description="other prompts take the places of solved and hopeless ones that are left out; if false, a step has "
        "fewer groups then, but at least one",
    )

    def conflicts(self) -> Iterator[str]:
        """Yield a conflict if every prompt is solved or hopeless."""
        if self.hopeless_below > self.solved_above:
            yield (
                f"algorithm.allocation.hopeless_below={self.hopeless_below} is more than solved_above="
                f"{self.solved_above}, so every prompt would be sampled less often; lower the first or raise the second"
            )

    def defaults(self, group_size: int) -> tuple[int, int]:
        """Return the values of min_group and max_group if they are null; `group_size` is the usual number."""
        if self.rule == "value":
            return 2, min(4 * group_size, LARGEST_GROUP)
        return max(2, group_size // 2), group_size

    def sizes(self, group_size: int) -> tuple[int, int]:
        """Return the fewest and the most completions of a group; `group_size` is the usual number."""
        fewest, most = self.defaults(group_size)
        return (
            fewest if self.min_group is None else self.min_group,
            most if self.max_group is None else self.max_group,
        )
