"""Ray's token authentication: whoever can send requests to a Ray cluster can run anything on it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from adagrpo_ray.cluster.environment import environment


@contextmanager
def own_token() -> Iterator[None]:
    """Within the block a Ray that starts here takes requests with a new token only.

    This process and its children have it, in their environment, and no file. What the environment says about tokens of
    other clusters, or about none, is as before after the block.
    """
    with ExitStack() as stack:
        stack.callback(read_again)  # the environment as it is after the block
        stack.enter_context(environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}))
        read_again()
        yield


def takes_token() -> bool:
    """Whether this process sends a token with its requests, without which a cluster that asks for one refuses them."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def read_again() -> None:
    """Have Ray look into the environment once more; there is no public way."""
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
