"""The phases of a request: the marker, and the sampling parameters before and after it, in vLLM's `extra_args`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from adagrpo_ray.config.refusals import explain
from adagrpo_ray.config.sampling import PhaseParams

KEY = "phases"  # of a request's extra_args
NEUTRAL = {**PhaseParams().model_dump(), "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True)
class Phases:
    """The phases of a request. The `marker`, a text or token ids, ends the thought and begins the answer."""

    marker: str | tuple[int, ...]
    thought: PhaseParams
    answer: PhaseParams


def phase_args(marker: str | Sequence[int], thought: Any, answer: Any) -> dict[str, Any]:
    """The `extra_args` of a request.

    `thought` and `answer` are mappings, or objects with attributes of PhaseParams; missing ones are neutral. A `marker`
    that is a text is found for any division into tokens. A `marker` of token ids must have the ids that the model
    writes, whose first and last token may include characters of the text next to the marker. Raises ValueError if an
    argument is not valid.
    """
    phases = {
        "marker": marker if isinstance(marker, str) else [int(token) for token in marker],
        "thought": _mapping(thought),
        "answer": _mapping(answer),
    }
    _parse(phases)
    return {KEY: phases}


def phases_of(sampling_params: Any) -> Phases | None:
    """The phases in vLLM's SamplingParams; None if the request has none. Raises ValueError if they are not valid."""
    phases = (sampling_params.extra_args or {}).get(KEY)
    return None if phases is None else _parse(phases)


def check_params(sampling_params: Any) -> None:
    """Raise ValueError if vLLM's SamplingParams have phases that are not valid, or phases and other parameters."""
    if phases_of(sampling_params) is None:
        return
    for key, neutral in NEUTRAL.items():
        value = getattr(sampling_params, key)
        if value != neutral and not (key == "top_k" and value == -1):
            raise ValueError(
                f"{key}={value!r} together with extra_args[{KEY!r}]; leave it at {neutral} and set it in the phases"
            )


def _mapping(values: Any) -> dict[str, Any]:
    if isinstance(values, Mapping):
        return dict(values)
    return {name: getattr(values, name) for name in PhaseParams.model_fields if hasattr(values, name)}


def _parse(phases: Any) -> Phases:
    """The phases in the value of `KEY`. Raises ValueError if a part is not valid."""
    wanted = {"marker", "thought", "answer"}
    if not isinstance(phases, Mapping) or set(phases) != wanted:
        raise ValueError(f"extra_args[{KEY!r}]={phases!r} must have marker, thought and answer; use phase_args")
    marker = phases["marker"]
    ids = isinstance(marker, list | tuple) and all(type(t) is int and t >= 0 for t in marker)
    if not marker or not (ids or isinstance(marker, str)):
        raise ValueError(f"{KEY}.marker={marker!r} must be a text, or a list of at least one token id")
    thought, answer = (_params(f"{KEY}.{name}", phases[name]) for name in ("thought", "answer"))
    return Phases(marker if isinstance(marker, str) else tuple(marker), thought, answer)


def _params(name: str, values: Any) -> PhaseParams:
    """The parameters in a mapping. Raises ValueError, which begins with `name`, if one is not valid."""
    known = ", ".join(PhaseParams.model_fields)
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}={values!r} is not a mapping; give one with some of {known}")
    for key, value in values.items():
        if key not in PhaseParams.model_fields:
            raise ValueError(f"{name}.{key}={value!r} is not known; use {known}")
    try:
        return PhaseParams(**values)
    except ValidationError as error:
        raise ValueError(f"{name}.{explain(error.errors()[0], PhaseParams)}") from None
