"""Settings of the replay: groups of earlier steps that are trained on again."""

from __future__ import annotations

from pydantic import Field

from adagrpo_ray.config.section import PositiveInt, Section


class ReplaySettings(Section):
    """Filling up a step that has few informative groups with those of earlier steps."""

    max_age: PositiveInt = Field(4, description="steps after which a group is not replayed any more")
    share: float = Field(
        0.5, gt=0.0, le=1.0, description="most groups that are replayed in a step, as a share of prompts_per_step"
    )
    times: PositiveInt = Field(1, description="most times that a group is replayed")
