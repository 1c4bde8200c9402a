"""The only declaration of sampling parameters: used in settings, in requests and in the record of each attempt."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from adagrpo_ray.config.section import Count, Section, Share

SMALLEST_TEMPERATURE = 0.01
"""vLLM uses this value in place of a smaller temperature above 0 (vllm.sampling_params, `_MAX_TEMP`)."""


def _as_vllm_samples(temperature: float) -> float:
    if 0 < temperature < SMALLEST_TEMPERATURE:
        raise ValueError(f"vLLM would use {SMALLEST_TEMPERATURE}; write 0, or {SMALLEST_TEMPERATURE} or more")
    return temperature


Temperature = Annotated[float, Field(ge=0.0, le=2.0), AfterValidator(_as_vllm_samples)]


class PhaseParams(Section):
    """Sampling parameters of one phase of a completion, independent of the engine."""

    temperature: Temperature = Field(1.0, description="softmax temperature, at most 2; 0 is greedy decoding")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="keep the likeliest tokens up to this probability mass")
    top_k: Count = Field(0, description="keep the k likeliest tokens; 0 keeps all")
    min_p: Share = Field(0.0, description="drop tokens less likely than this share of the likeliest; 0 keeps all")
    repetition_penalty: float = Field(1.0, ge=0.01, le=2.0, description="above 1.0 makes repeated tokens less likely")


class SamplingParams(PhaseParams):
    """Sampling parameters of a completion. With `answer` the other parameters apply to the thought alone.

    Raises pydantic's ValidationError if a parameter is out of its bounds.
    """

    answer: PhaseParams | None = Field(
        None,
        description="parameters from data.format.think_end on; the others then apply to the thought alone; "
        "null: one set for both",
    )

    @field_validator("answer")
    @classmethod
    def _one_phase(cls, answer: PhaseParams | None) -> PhaseParams | None:
        """Return the answer as PhaseParams, so that SamplingParams given for it compare equal."""
        if not isinstance(answer, SamplingParams):
            return answer
        if answer.answer is not None:
            raise ValueError("the parameters of the answer have no answer of their own; remove it")
        return PhaseParams(**answer.model_dump(exclude={"answer"}))
