"""Ray's token authentication. Without it, every program that can reach a Ray cluster can run code on it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from adagrpo_ray.cluster.environment import environment


@contextmanager
def own_token() -> Iterator[None]:
    """Make a Ray that starts within the block accept requests with a new token only.

    The token is in the environment of this process and its children, and in no file. After the block the variables
    have their earlier values, which may be for another cluster.
    """
    with ExitStack() as stack:
        stack.callback(read_again)  # after the environment is restored
        stack.enter_context(environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}))
        read_again()
        yield


def takes_token() -> bool:
    """Return whether this process sends a token with its requests, which some clusters require."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def warn_unguarded(joined: str, notify: Callable[[str], None]) -> None:
    """Warn the user if the joined Ray cluster at this address requires no token."""
    if not takes_token():
        notify(
            f"warning: the Ray cluster at {joined} requires no token, so that anyone who reaches its ports can run "
            "code on it; start it with RAY_AUTH_MODE=token (docs/jobs.md)"
        )


def read_again() -> None:
    """Make Ray read the environment again. Ray has no public function for this."""
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
