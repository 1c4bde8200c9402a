"""A fake Hub on loopback, with the endpoints that a push needs. It records the requests."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Hub:
    """The state of a fake Hub.

    private, exists: of the only repository, me/mine.
    refuses: part of a path -> HTTP status with which requests to it fail.
    requested: the paths of all requests.
    created: the bodies of the requests that created a repository.
    objects: uploaded large files by SHA-256.
    commits: the files of each commit.
    """

    url: str = ""
    token: str = "hf_" + "good" * 5
    private: bool = False
    exists: bool = False
    refuses: dict[str, int] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, bytes]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        if self._accepted():
            self._answer({"id": "me/mine", "private": self.hub.private, "siblings": [], "sha": "0" * 40})

    def do_PUT(self) -> None:
        self.hub.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body, hub = self._body(), self.hub
        if not self._accepted():
            return
        if self.path == "/api/repos/create":
            request = json.loads(body)
            if hub.exists:
                self._answer({"error": "You already created this model repo", "url": f"{hub.url}/me/mine"}, 409)
                return
            hub.created.append(request)
            hub.private = request.get("visibility") == "private"
            self._answer({"url": f"{hub.url}/me/mine"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            large = (".safetensors",)
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(large) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            self._answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}} for o in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            files = {}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    files[line["value"]["path"]] = hub.objects[line["value"]["oid"]]
            hub.commits.append(files)
            self._answer({"commitUrl": f"{hub.url}/me/mine/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None})
        else:
            self._answer({"error": f"nothing at {self.path}"}, 404)

    def _accepted(self) -> bool:
        """Record the request; answer it with an error, and return False, if it has to fail."""
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requested.append(path)
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer({"error": "Invalid username or password."}, 401)
            return False
        for part, status in hub.refuses.items():
            if part in path:
                self._answer({"error": f"Forbidden for {hub.token}"}, status)
                return False
        return True

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty Hub within the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
