"""Settings of judges and reward models: models that score completions, behind an HTTP server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from adagrpo_ray.config.placeholders import placeholders
from adagrpo_ray.config.secrets import variable_name, without_keys, without_secret
from adagrpo_ray.config.section import Count, Location, PositiveInt, Seconds, Section
from adagrpo_ray.config.typed import read_as

Server = Annotated[str, Field(pattern=r"^https?://[^\s/]+"), AfterValidator(without_secret)]
Variable = Annotated[str, AfterValidator(variable_name)]
Price = Annotated[float, Field(ge=0.0, le=1e9)]

MAY_CHANGE = (
    *("base_url", "api_key_env", "timeout_s", "retries", "max_concurrent", "requests_per_minute", "cache_entries"),
    *("prompt_price", "completion_price"),
)
"""Settings that change no score: a resumed run may change them."""


class ServedSettings(Section):
    """A model behind a server, which gets one request for each completion."""

    name: str = Field(
        ...,
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$",
        max_length=100,
        description="its name in rewards.correct_by, metrics and samples",
    )
    model: str = Field(..., min_length=1, description="name of the model at the server")
    base_url: Server = Field(
        ..., description="address of the server as OpenAI's clients take it, such as http://127.0.0.1:8000/v1"
    )
    api_key_env: Variable | None = Field(
        None, description="environment variable that holds the server's key; null: the server needs none"
    )
    timeout_s: Seconds = Field(60.0, description="seconds that one request may take")
    retries: Annotated[int, Field(ge=0, le=20)] = Field(
        2, description="further requests after one without an answer, or with the status 408, 409, 429 or 5xx"
    )
    max_concurrent: PositiveInt = Field(32, description="requests at the same time")
    requests_per_minute: Annotated[float, Field(gt=0.0, le=1e9)] | None = Field(
        None, description="requests that begin in any minute at most, retries included; null: no limit"
    )
    cache_entries: Count = Field(
        10_000, description="scores that are kept in memory, so that an equal request is not sent again; 0: none"
    )
    prompt_price: Price = Field(0.0, description="price of a million tokens of prompts, in any currency")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of these tokens."""
        return self.prompt_price * prompt_tokens / 1e6


class JudgeSettings(ServedSettings):
    """A chat model that replies with a score. The score of a completion is its place between low and high, 0 to 1."""

    template: str | None = Field(
        None,
        description="the request to the judge, with {completion}, {prompt}, {answer}, {difficulty} and columns of the "
        "data in braces; required",
    )
    template_file: Location | None = Field(
        None, description="file to read the template from, when the settings are read; null: template has it"
    )
    system: str | None = Field(None, min_length=1, description="system message before the template; null: none")
    reply: Literal["json", "number"] = Field(
        "json",
        description='json: the server makes the judge reply with {"score": x}; number: any text, whose last number is '
        "the score",
    )
    low: float = Field(0.0, ge=-1e6, le=1e6, description="worst score of the judge, which becomes 0")
    high: float = Field(10.0, ge=-1e6, le=1e6, description="best score of the judge, which becomes 1")
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = Field(
        0.0, description="sampling temperature of the judge; null: the server's default"
    )
    max_tokens: PositiveInt = Field(256, description="tokens of a reply at most")
    extra: Annotated[dict[str, Any], AfterValidator(without_keys)] = Field(
        {}, description="further fields of a request, such as {chat_template_kwargs: {enable_thinking: false}}"
    )
    completion_price: Price = Field(0.0, description="price of a million tokens of replies, in any currency")

    @model_validator(mode="before")
    @classmethod
    def _read_template(cls, values: Any) -> Any:
        """Put the text of `template_file` into `template`, so that config.yaml has it."""
        if not isinstance(values, Mapping):
            return values
        given, file = (read_as(str | None, values.get(key)) for key in ("template", "template_file"))
        if given is not None or not isinstance(file, str) or not file:
            return values
        try:
            text = Path(file).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"template_file={file!r:.200} cannot be read ({reason}); give a text file") from None
        return {**values, "template": text, "template_file": None}

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of these tokens."""
        return super().cost(prompt_tokens, completion_tokens) + self.completion_price * completion_tokens / 1e6

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts of the template and of the range of scores."""
        place = f"rewards.functions: the judge {self.name!r}"
        yield from _of_template(self.name, self.template)
        if self.template is None:
            yield f"{place} has no template; set template or template_file"
        elif self.template_file is not None:
            yield f"{place} has a template, and template_file={self.template_file!r:.200}; give one of them"
        if self.low >= self.high:
            yield f"{place} has low={self.low:g} and high={self.high:g}; make high the larger one"


class RewardModelSettings(ServedSettings):
    """A reward model at a vLLM server (`vllm serve MODEL --runner pooling`). The score is its output."""

    template: str | None = Field(
        None,
        description="the text that it scores, with the placeholders of a judge's template; null: a chat of the prompt "
        "and the completion, in the chat template of its own",
    )
    activation: bool = Field(False, description="apply the activation of the model, such as a sigmoid, to its output")

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts of the template."""
        yield from _of_template(self.name, self.template)


def _of_template(name: str, template: str | None) -> Iterator[str]:
    """Yield conflicts of the template of the judge or reward model `name`."""
    if template is None:
        return
    place = f"rewards.functions: the template of {name!r}"
    try:
        names = placeholders(template)
    except ValueError as error:
        yield f"{place} has wrong braces ({error}); write {{name}} for a value, and {{{{ }}}} for braces themselves"
        return
    if "completion" not in names:
        yield f"{place} has no {{completion}}, so every completion would get the same score; add it"
