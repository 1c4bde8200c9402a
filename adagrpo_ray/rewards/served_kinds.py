"""The two kinds of models behind servers, judges and reward models: their requests, and the scores in the replies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field, ValidationError

from adagrpo_ray.config.placeholders import filled
from adagrpo_ray.config.served_rewards import JudgeSettings, RewardModelSettings

_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)"
# Of "7/10" and "7 out of 10" the score is 7.
_SCORE = re.compile(rf"({_NUMBER})(?:\s*(?:/|out of)\s*{_NUMBER})?")


class NonsenseError(ValueError):
    """A server replied with something that is no score.

    reply: the reply as Python writes it, for the message; "" if the reason alone is the message. It is cut to a
        readable length as the message is made, since a part of a key could not be recognised any more.
    """

    def __init__(self, reason: str, reply: object = None) -> None:
        super().__init__(reason)
        self.reply = "" if reply is None else f"{reply!r:.2000}"


class Kind(Protocol):
    """A kind of model: its path at the server, the body of a request, and the score in a reply."""

    path: str

    def body(self, values: Mapping[str, object]) -> dict[str, Any]:
        """Return the body of the request for one completion; `values` are those of the placeholders."""

    def read(self, reply: object) -> float:
        """Return the score in a reply. Raises NonsenseError if there is none."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Chat(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _Score(BaseModel):
    score: float = Field(allow_inf_nan=False)


class Judge:
    """A chat model that replies with a score (`/chat/completions` of OpenAI's API)."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self.path = "/chat/completions"

    def body(self, values: Mapping[str, object]) -> dict[str, Any]:
        """Return the request that the template makes of the values."""
        s = self._settings
        assert s.template is not None  # checked with the settings
        messages = [{"role": "user", "content": filled(s.template, values)}]
        if s.system is not None:
            messages.insert(0, {"role": "system", "content": s.system})
        body: dict[str, Any] = {"model": s.model, "messages": messages, "max_completion_tokens": s.max_tokens}
        if s.temperature is not None:
            body["temperature"] = s.temperature
        if s.reply == "json":
            schema = {"name": "score", "schema": _schema(s.low, s.high), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body | s.extra

    def read(self, reply: object) -> float:
        """Return the score, 0 to 1. Raises NonsenseError if there is none in the judge's range."""
        s = self._settings
        try:
            choice = _Chat.model_validate(reply).choices[0]
        except ValidationError:
            raise NonsenseError("which is no chat completion; correct base_url", reply) from None
        text = choice.message.content or ""
        score = _in_json(text) if s.reply == "json" else _last_number(text)
        if score is None:
            wanted = 'JSON with a number as "score"' if s.reply == "json" else "number"
            remedy = f"raise max_tokens={s.max_tokens}" if choice.finish_reason == "length" else "change the template"
            raise NonsenseError(f"which has no {wanted}; {remedy}", text)
        if not s.low <= score <= s.high:
            raise NonsenseError(
                f"gave the score {score:g}, which is not between low={s.low:g} and high={s.high:g}; change the template"
            )
        return (score - s.low) / (s.high - s.low)


class _Output(BaseModel):
    data: list[Annotated[float, Field(allow_inf_nan=False)]]


class _Outputs(BaseModel):
    data: list[_Output] = Field(min_length=1, max_length=1)


class RewardModel:
    """A reward model at vLLM's pooling API (`/pooling`), which vLLM's documentation names for reward models."""

    def __init__(self, settings: RewardModelSettings) -> None:
        self._settings = settings
        # Not below /v1, which is the part of the server that is compatible with OpenAI's.
        self.path = f"{settings.base_url.rstrip('/').removesuffix('/v1')}/pooling"

    def body(self, values: Mapping[str, object]) -> dict[str, Any]:
        """Return the request for the text of the template, or for a chat of the prompt and the completion."""
        s = self._settings
        body: dict[str, Any] = {"model": s.model, "use_activation": s.activation}
        if s.template is not None:
            return body | {"input": filled(s.template, values)}
        roles = {"user": "{prompt}", "assistant": "{completion}"}
        return body | {"messages": [{"role": role, "content": filled(text, values)} for role, text in roles.items()]}

    def read(self, reply: object) -> float:
        """Return the output of the model. Raises NonsenseError if it is another number of values than one."""
        try:
            output = _Outputs.model_validate(reply, strict=True).data[0].data
        except ValidationError:
            reason = "which is no output of a reward model; serve one with --runner pooling"
            raise NonsenseError(reason, reply) from None
        if len(output) != 1:
            raise NonsenseError(f"gave {len(output)} numbers for a completion; serve a reward model with one label")
        return output[0]


def _schema(low: float, high: float) -> dict[str, Any]:
    """Return the JSON schema of a reply."""
    return {
        "type": "object",
        "properties": {"score": {"type": "number", "minimum": low, "maximum": high}},
        "required": ["score"],
        "additionalProperties": False,
    }


def _in_json(text: str) -> float | None:
    try:
        return _Score.model_validate(json.loads(text), strict=True).score
    except (ValueError, OverflowError, RecursionError):  # pydantic's error is a ValueError
        return None


def _last_number(text: str) -> float | None:
    *_, last = [None, *_SCORE.finditer(text)]
    return None if last is None else float(last[1])
