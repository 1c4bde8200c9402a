"""The one declaration of sampling parameters: written as settings, sent with requests, kept with every attempt."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from adagrpo_ray.config.section import Count, Section, Share

SMALLEST_TEMPERATURE = 0.01
"""vLLM samples with this one in place of any that is above 0 and below it (vllm.sampling_params, `_MAX_TEMP`)."""


def _as_vllm_samples(temperature: float) -> float:
    if 0 < temperature < SMALLEST_TEMPERATURE:
        raise ValueError(f"vLLM would sample with {SMALLEST_TEMPERATURE}; write 0 or {SMALLEST_TEMPERATURE} and more")
    return temperature


Temperature = Annotated[float, Field(ge=0.0, le=2.0), AfterValidator(_as_vllm_samples)]


class PhaseParams(Section):
    """How the tokens of one phase of a completion are drawn, in no engine's own words."""

    temperature: Temperature = Field(1.0, description="softmax temperature, at most 2; 0 is greedy decoding")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="keep the likeliest tokens up to this probability mass")
    top_k: Count = Field(0, description="keep the k likeliest tokens; 0 keeps all")
    min_p: Share = Field(0.0, description="drop tokens less likely than this share of the likeliest; 0 keeps all")
    repetition_penalty: float = Field(1.0, ge=0.01, le=2.0, description="above 1.0 makes repeated tokens less likely")


class SamplingParams(PhaseParams):
    """How the tokens of a completion are drawn. With `answer` the other parameters are those of the thought alone.

    Frozen; raises pydantic's ValidationError if a parameter is out of its bounds.
    """

    answer: PhaseParams | None = Field(
        None, description="parameters from data.format.think_end on, the others then being the thought's; null: one set"
    )

    @field_validator("answer")
    @classmethod
    def _one_phase(cls, answer: PhaseParams | None) -> PhaseParams | None:
        """The answer as one phase, so that SamplingParams given for it compare equal to PhaseParams."""
        if not isinstance(answer, SamplingParams):
            return answer
        if answer.answer is not None:
            raise ValueError("the parameters of the answer have no answer of their own; leave it out")
        return PhaseParams(**answer.model_dump(exclude={"answer"}))
