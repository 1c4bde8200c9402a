"""Ray's token authentication: whoever can send requests to a Ray cluster can run anything on it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@contextmanager
def own_token() -> Iterator[None]:
    """Within the block a Ray that starts here takes requests with a new token only.

    This process and its children have it, in their environment, and no file. What the environment says about tokens of
    other clusters, or about none, is as before after the block.
    """
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict(zip(VARIABLES, ("token", secrets.token_hex(32)), strict=True)))
    read_again()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        read_again()


def takes_token() -> bool:
    """Whether this process sends a token with its requests, without which a cluster that asks for one refuses them."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def read_again() -> None:
    """Have Ray look into the environment once more; there is no public way."""
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
