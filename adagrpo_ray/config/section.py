"""The base class of all sections of the configuration, and the types of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from adagrpo_ray.config.secrets import without_secret
from adagrpo_ray.config.typed import read_as


def _as_ray_counts(amount: float) -> float:
    """Return the amount. Ray counts in steps of 0.0001 and refuses less (ray._common.ray_option_utils)."""
    if 0 < amount < 0.0001:
        raise ValueError("input is less than Ray counts; write 0, or 0.0001 or more")
    return amount


def _custom(resource: str) -> str:
    if resource in ("memory", "object_store_memory"):
        raise ValueError("this is a resource of Ray's own; give custom ones, such as rollout: 1")
    return resource


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
LARGEST_GROUP = 16384
"""Most completions of one request; it is the bound of vLLM (VLLM_MAX_N_SEQUENCES)."""
GroupSize = Annotated[int, Field(ge=2, le=LARGEST_GROUP)]
Seconds = Annotated[float, Field(gt=0.0, lt=2**31 / 1000)]
"""A time; poll(2) waits for at most 24 days, which is milliseconds in an int."""
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Gibibytes = Annotated[float, Field(gt=0.0, lt=2**33)]
"""An amount of memory; its bytes fit into a signed number of 64 bits."""
Amount = Annotated[float, Field(ge=0.0, lt=2**31), AfterValidator(_as_ray_counts)]
Resource = Annotated[str, Field(pattern=r"^[a-z][A-Za-z0-9_.-]*$"), AfterValidator(_custom)]
Resources = dict[Resource, Annotated[Amount, Field(gt=0.0)]]
Digits = Annotated[int, Field(ge=2, le=9)]
Location = Annotated[str, Field(min_length=1), AfterValidator(without_secret)]
"""A path, a name or a URL without a user, a password or a query."""


class Section(BaseModel):
    """A part of the tree. It refuses unknown keys, is frozen, and converts no types.

    Pydantic's own errors show no values, since one may be a secret. Those of `adagrpo_ray.config.reading` show all
    values except secrets.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _typed(cls, value: Any, info: ValidationInfo) -> Any:
        return read_as(cls.model_fields[str(info.field_name)].annotation, value)

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts between settings of this section, with full keys, values and the remedy."""
        yield from ()

    @model_validator(mode="after")
    def _without_conflicts(self, info: ValidationInfo) -> Self:
        """Add the conflicts to the list that is the context of the validation, to report all of them together.

        Raises ValueError if there are conflicts and no such list.
        """
        found = list(self.conflicts())
        if isinstance(info.context, list):
            info.context.extend(found)
        elif found:
            raise ValueError("; ".join(found))
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values, which are not validated. Raises TypeError if a name is no setting."""
        if unknown := set(update or ()) - set(type(self).model_fields):
            raise TypeError(f"{type(self).__name__} has no {sorted(unknown)[0]!r}")
        return super().model_copy(update=update, deep=deep)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section in a type of a setting: the type itself, one of a union, or the entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for s in map(section_of, get_args(annotation)) if s is not None), None)
