"""What all sections of the configuration have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from adagrpo_ray.config.typed import read_as


def _as_ray_counts(amount: float) -> float:
    """Ray counts in steps of 0.0001, and refuses less (ray._common.ray_option_utils)."""
    if 0 < amount < 0.0001:
        raise ValueError("input is less than Ray counts; write 0, or 0.0001 and more")
    return amount


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
GroupSize = Annotated[int, Field(ge=2, le=16384)]
"""Completions of one request: vLLM's own limit (VLLM_MAX_N_SEQUENCES)."""
Seconds = Annotated[float, Field(gt=0.0, lt=2**31 / 1000)]
"""At most what poll(2) waits for: milliseconds in an int, 24 days."""
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Gibibytes = Annotated[float, Field(gt=0.0, lt=2**33)]
"""Of memory, whose bytes go into a signed number of 64 bits."""
Amount = Annotated[float, Field(ge=0.0, lt=2**31), AfterValidator(_as_ray_counts)]
Resources = dict[Annotated[str, Field(pattern=r"^[a-z][A-Za-z0-9_.-]*$")], Annotated[Amount, Field(gt=0.0)]]
Digits = Annotated[int, Field(ge=2, le=9)]


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, values cannot change once read, types are as they are written."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _typed(cls, value: Any, info: ValidationInfo) -> Any:
        return read_as(cls.model_fields[str(info.field_name)].annotation, value)


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line: key, value, and the values that are allowed."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, first['loc']))}={first['input']!r}: {message[:1].lower()}{message[1:]}"
