"""The key of a server, its place in requests, and the errors of its client in one line with the remedy."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import cast

import httpx2
import openai

from adagrpo_ray.config.served_rewards import ServedSettings
from adagrpo_ray.errors import ConfigError, first_line
from adagrpo_ray.rewards.served_kinds import NonsenseError

NO_KEY = "EMPTY"
"""The key that is sent to a server that needs none, as in vLLM's documentation; openai's client requires one."""

MOST_QUOTED = 200
"""Characters of a reply in a message."""


def place_of(settings: ServedSettings) -> str:
    """Return the beginning of an error: the setting, the name and the address."""
    return f"rewards.functions: {settings.name!r} at {settings.base_url}"


def key_of(settings: ServedSettings) -> str:
    """Return the key of the server from the environment. Raises ConfigError if it has none, or no valid one."""
    if settings.api_key_env is None:
        return NO_KEY
    key, place = os.environ.get(settings.api_key_env, "").strip(), f"rewards.functions: {settings.name!r}"
    if not key:
        raise ConfigError(
            f"{place} has api_key_env={settings.api_key_env}, and this variable is not set on {socket.gethostname()}; "
            "export it there before the start, also before `ray start` on a cluster"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:  # errors of the client would quote it
        raise ConfigError(
            f"{place} has api_key_env={settings.api_key_env}, and this variable holds spaces or characters that no key "
            "has; set it to the key alone"
        )
    return key


def headers_of(key: str) -> Mapping[str, str]:
    """Return headers with the key, without those that openai's client would take from the environment.

    It reads OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, which may be meant for another server.
    """
    custom = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
    names = [line.partition(":")[0].strip() for line in custom if ":" in line]
    omitted = dict.fromkeys(("OpenAI-Organization", "OpenAI-Project", *names), openai.Omit())
    return cast(Mapping[str, str], {**omitted, "Authorization": f"Bearer {key}"})


def described(error: Exception, settings: ServedSettings, key: str) -> str:
    """Return the description of an error, as the end of a sentence, with the remedy and without the key."""
    if isinstance(error, NonsenseError):
        reply = _without(error.reply, key)
        quoted = reply if len(reply) <= MOST_QUOTED else f"{reply[:MOST_QUOTED]}..."
        return f"replied {quoted}, {error}" if reply else str(error)
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) and error.__cause__ else error
    reason = first_line(Exception(_without(str(cause) or repr(cause), key)))
    match error:
        case openai.APITimeoutError():
            return (
                f"did not answer within timeout_s={settings.timeout_s:g}, {settings.retries + 1} times; raise it, or "
                "lower max_concurrent"
            )
        case openai.APIConnectionError():
            return f"cannot be reached ({reason}); start the server, or correct base_url"
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return f"refuses the key in api_key_env={settings.api_key_env or 'null'} ({reason}); correct it"
        case openai.NotFoundError():
            return f"has no such path or model ({reason}); correct base_url, which mostly ends with /v1"
        case openai.RateLimitError():
            return (
                f"refused too many requests ({reason}); lower requests_per_minute or max_concurrent, or raise retries"
            )
        case openai.OpenAIError():
            return f"answered with an error ({reason}); its log has the cause"
        case httpx2.InvalidURL():
            return f"is no address ({reason}); correct base_url"
    return f"answered with something that is no JSON ({reason}); correct base_url"


def _without(text: str, key: str) -> str:
    """Return the text, which may quote a reply in Python or JSON, with *** in place of the key."""
    if key != NO_KEY:
        for written in {key, repr(key)[1:-1], json.dumps(key)[1:-1]}:
            text = text.replace(written, "***")
    return text
