"""Servers of judges and reward models: an HTTP server in a thread, and a transport without a network."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

from adagrpo_ray.config.rewards import RewardSettings
from adagrpo_ray.config.served_rewards import JudgeSettings, RewardModelSettings

Body = dict[str, Any]
TEMPLATE = "Rate {completion} as the answer to {prompt}, where {answer} is correct."


def judge(**changes: Any) -> JudgeSettings:
    """The settings of a judge that scores 0 to 10."""
    given = {"name": "helpful", "model": "judge-1", "base_url": "http://judge.test/v1", "template": TEMPLATE}
    return JudgeSettings.model_validate({**given, **changes})


def reward_model(**changes: Any) -> RewardModelSettings:
    given = {"name": "preferred", "model": "reward-1", "base_url": "http://reward.test/v1"}
    return RewardModelSettings.model_validate({**given, **changes})


def entry(model: JudgeSettings | RewardModelSettings, weight: float = 1.0) -> RewardSettings:
    kind = "judge" if isinstance(model, JudgeSettings) else "reward_model"
    return RewardSettings.model_validate({kind: model, "weight": weight})


def chat(content: str | None, finish_reason: str = "stop", tokens: tuple[int, int] = (100, 5)) -> Body:
    """The body of a chat completion; `tokens` are those of the prompt and of the reply."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return {"id": "chat-1", "object": "chat.completion", "model": "judge-1", "choices": [choice], "usage": usage}


def scored(score: float) -> Body:
    """The body of a judge's reply."""
    return chat(json.dumps({"score": score}))


def pooled(*numbers: Any) -> Body:
    """The body of a reward model's reply, as vLLM 0.32 makes it."""
    usage = {"prompt_tokens": 40, "completion_tokens": 0, "total_tokens": 40}
    data = [{"index": 0, "object": "pooling", "data": list(numbers)}]
    return {"id": "pool-1", "object": "list", "created": 1, "model": "reward-1", "data": data, "usage": usage}


@dataclass
class Transport(httpx2.AsyncBaseTransport):
    """Answers requests by `reply`, and keeps their bodies and times in the event loop."""

    reply: Callable[[Body], Awaitable[httpx2.Response]]
    requests: list[httpx2.Request] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        self.bodies.append(json.loads(await request.aread()))
        return await self.reply(self.bodies[-1])


def response(body: Any, status: int = 200, **headers: str) -> httpx2.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, json=body, headers=names)


@dataclass
class Server:
    """A server in a thread. `reply` makes status and body of a request; None leaves it without an answer."""

    url: str
    reply: Callable[[Body], tuple[int, Any] | None]
    models: tuple[int, Any]
    bodies: list[Body] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # connections that wait to be accepted; more of them would be repeated after a second

    def handle_error(self, *_: Any) -> None:
        """Log nothing: clients that give up close their connections."""


@contextmanager
def serving(
    reply: Callable[[Body], tuple[int, Any] | None] = lambda body: (200, scored(10)),
    models: tuple[int, Any] = (200, {"data": [{"id": "judge-1"}, {"id": "reward-1"}]}),
) -> Iterator[Server]:
    """Serve on a free port of 127.0.0.1 within the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(server.models if self.path == "/v1/models" else (404, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            answer = server.reply(body)
            if answer is None:
                server.ended.wait()
            else:
                self._answer(answer)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

        def _answer(self, answer: tuple[int, Any]) -> None:
            server.keys.append(self.headers.get("Authorization", ""))
            status, body = answer
            text = body if isinstance(body, str) else json.dumps(body)
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    listening = _Listening(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listening.server_port}/v1", reply, models)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        listening.shutdown()
        listening.server_close()
        thread.join()
