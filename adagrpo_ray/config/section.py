"""What all sections of the configuration have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
Resources = dict[Annotated[str, Field(pattern=r"^[a-z][A-Za-z0-9_.-]*$")], Annotated[float, Field(gt=0.0)]]
Digits = Annotated[int, Field(ge=2, le=9)]


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, values cannot change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
