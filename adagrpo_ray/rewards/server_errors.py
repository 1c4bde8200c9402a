"""The key of a server, and the errors of its client in one line with the remedy."""

from __future__ import annotations

import os
import socket

import httpx2
import openai

from adagrpo_ray.config.served_rewards import ServedSettings
from adagrpo_ray.errors import ConfigError, first_line
from adagrpo_ray.rewards.served_kinds import NonsenseError

NO_KEY = "EMPTY"
"""The key that is sent to a server that needs none, as in vLLM's documentation; openai's client requires one."""


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


def described(error: Exception, settings: ServedSettings, key: str) -> str:
    """Return the description of an error, as the end of a sentence, with the remedy and without the key."""
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) and error.__cause__ else error
    text = str(cause) or repr(cause)
    reason = first_line(Exception(text if key == NO_KEY else text.replace(key, "***")))
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
        case NonsenseError():
            return reason
    return f"answered with something that is no JSON ({reason}); correct base_url"
