"""The check of judges and reward models before the start: key, template, and a server that has the model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import httpx2
import openai
from pydantic import BaseModel, ValidationError

from adagrpo_ray.config.placeholders import placeholders
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.config.served_rewards import ServedSettings
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.rewards.registry import BUILTIN, SETTING
from adagrpo_ray.rewards.served import WORDS
from adagrpo_ray.rewards.server_errors import described, headers_of, key_of, place_of
from adagrpo_ray.types import Prompt

PATIENCE_S = 10.0
"""Seconds that a server may take to list its models."""


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


def check_served_rewards(rewards: RewardsSettings, prompts: Sequence[Prompt]) -> None:
    """Check the judges and reward models, and ask each server for its models.

    Raises ConfigError if a name is one of a built-in function, the environment has no key, a template has an unknown
    placeholder, or a server cannot be reached or does not have the model.
    """
    for settings in rewards.served:
        if settings.name in BUILTIN:
            raise ConfigError(f"{SETTING}: the name {settings.name!r} is that of a built-in function; choose another")
        key_of(settings)
        if settings.template is not None:
            _check_placeholders(settings.name, settings.template, prompts)
    for settings in rewards.served:
        _check_server(settings)


def _check_placeholders(name: str, template: str, prompts: Sequence[Prompt]) -> None:
    """Raise ConfigError if a placeholder is no column of one of the prompts, and no word."""
    for placeholder in placeholders(template):
        lacking = [prompt for prompt in prompts if placeholder not in (*WORDS, *prompt.columns)]
        if lacking:
            known = ", ".join((*WORDS, *sorted({column for prompt in prompts for column in prompt.columns})))
            raise ConfigError(
                f"{SETTING}: the template of {name!r} has {{{placeholder}}}, which {len(lacking)} of {len(prompts)} "
                f"prompts do not have; use {known}, and {{{{ }}}} for braces themselves"
            )


def _check_server(settings: ServedSettings) -> None:
    key = key_of(settings)
    timeout_s = min(PATIENCE_S, settings.timeout_s)
    place = place_of(settings)
    try:
        with openai.OpenAI(
            api_key=key,
            base_url=settings.base_url,
            max_retries=1,
            timeout=timeout_s,
            default_headers=headers_of(key),
        ) as client:
            reply = client.get("/models", cast_to=object)
        found = [model.id for model in _Models.model_validate(reply).data]
    except ValidationError:
        raise ConfigError(f"{place} does not list its models at /models; correct base_url") from None
    except (openai.OpenAIError, httpx2.InvalidURL, ValueError) as error:
        asked = settings.model_copy(update={"timeout_s": timeout_s, "retries": 1})
        raise ConfigError(f"{place} {described(error, asked, key)}") from None
    if settings.model not in found:
        near = difflib.get_close_matches(settings.model, found, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(found[:10]) or 'none'}"
        raise ConfigError(f"{place} does not have model={settings.model!r:.200}; {hint:.1000}")
