"""Messages between the learner and the processes of environments, over sockets.

A request is pickled, since a row may have any value. A reply is JSON: the learner unpickles nothing that an environment
has made.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import struct
from typing import Any

_SIZE = struct.Struct("!I")
LARGEST = 2**30
"""Most bytes of a message."""


async def send_request(writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
    """Send a request."""
    await _send(writer, pickle.dumps(request))


async def receive_request(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Return the next request; None at the end."""
    data = await _receive(reader)
    if data is None:
        return None
    request: dict[str, Any] = pickle.loads(data)
    return request


async def send_reply(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    """Send a reply. Raises TypeError or ValueError if it has a value that JSON does not have."""
    await _send(writer, json.dumps(reply).encode())


async def receive_reply(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Return the next reply; None at the end, or after bytes that are none."""
    data = await _receive(reader)
    if data is None:
        return None
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return reply if isinstance(reply, dict) else None


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(_SIZE.pack(len(data)) + data)
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> bytes | None:
    try:
        (size,) = _SIZE.unpack(await reader.readexactly(_SIZE.size))
        return await reader.readexactly(size) if size <= LARGEST else None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
