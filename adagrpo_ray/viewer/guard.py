"""Protects the pages: the address to listen on, the host names answered, and the origins that a page may load from."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adagrpo_ray.errors import ConfigError, ResourceError

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Nothing is loaded from other servers: an answer may contain the URL of an image, and Gradio's page names fonts."""


class Guard:
    """Refuses requests to other host names than `hosts` (None: any), and forbids pages to load from other servers.

    Other names are refused because of DNS rebinding: a foreign site may let its own name point to this machine, whose
    pages the browser would then treat as that site's.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None) -> None:
        self._app, self._hosts = app, None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if self._hosts is not None and _name(Headers(scope=scope).get("host", "")) not in self._hosts:
            refusal = PlainTextResponse("this name is not served here", status_code=421)
            await refusal(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, guarded)


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises ResourceError if that fails."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: the name is invalid
        raise ResourceError(f"cannot listen on {host}, port {port} ({error}); give another --host or --port") from None


def read_password(path: str) -> str:
    """Read the password in a file. Raises ConfigError if there is none."""
    try:
        password = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --password-file {path}: {error}") from None
    if not password:
        raise ConfigError(f"--password-file {path} is empty; write a password into it")
    return password
