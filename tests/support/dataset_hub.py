"""A fake Hub of data sets on loopback, with the endpoints that `datasets.load_dataset` reads."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COMMIT = "a" * 40
Repositories = Mapping[str, Mapping[str, bytes]]
"""The files of each repository, by path."""


def repository(subset: str | None, split: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The files of a repository with one subset and split, as the Hub stores them: a card and a Parquet file."""
    name = subset or "default"
    configs = f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/{split}-*\n"
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), parquet)
    return {
        "README.md": f"---\nconfigs:\n{configs}---\n".encode(),
        f"{name}/{split}-00000-of-00001.parquet": parquet.getvalue(),
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Repositories
    gated: frozenset[str]

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/").removeprefix("api/").removeprefix("datasets/")
        owner, name, *rest = [*path.split("/"), ""]
        repo = f"{owner}/{name}"
        files = self.repositories.get(repo)
        if files is None:
            self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif repo in self.gated:
            self._answer(b"{}", 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif rest[0] == "tree":
            self._answer(json.dumps(_entries(files, "/".join(rest[2:]).strip("/"))).encode())
        elif rest[0] == "resolve":
            self._file(files, "/".join(rest[2:]).strip("/"))
        else:
            about = {"id": repo, "private": False, "tags": [], "sha": COMMIT}
            self._answer(json.dumps(about | {"siblings": [{"rfilename": file} for file in files]}).encode())

    def _file(self, files: Mapping[str, bytes], name: str) -> None:
        commit = {"X-Repo-Commit": COMMIT}
        if name not in files:
            self._answer(b"{}", 404, {**commit, "X-Error-Code": "EntryNotFound"})
            return
        self._answer(files[name], headers={**commit, "ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"'})

    def _answer(self, content: bytes, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entries(files: Mapping[str, bytes], folder: str) -> list[dict[str, Any]]:
    """The files and folders in a folder, as the Hub lists them."""
    inside = [file for file in files if file.startswith(f"{folder}/" if folder else "")]
    below = [file[len(folder) :].lstrip("/") for file in inside]
    found: list[dict[str, Any]] = [
        {"type": "file", "path": file, "size": len(files[file]), "oid": hashlib.sha1(files[file]).hexdigest()}
        for file, rest in zip(inside, below, strict=True)
        if "/" not in rest
    ]
    folders = {f"{folder}/{rest.split('/')[0]}".strip("/") for rest in below if "/" in rest}
    return [*found, *({"type": "directory", "path": path, "oid": "0" * 40} for path in folders)]


@contextmanager
def serving(repositories: Repositories, gated: Sequence[str] = ()) -> Iterator[str]:
    """Serve these repositories within the block, and refuse the gated ones; the URL of the Hub."""
    values = {"repositories": repositories, "gated": frozenset(gated)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), values))
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
