"""Access to the web pages, and the arguments that launch/ui.py refuses."""

from __future__ import annotations

import socket
from pathlib import Path
from types import ModuleType

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from adagrpo_ray.viewer.guard import Guard, is_loopback
from tests.support.scripts import script


@pytest.fixture(scope="module")
def ui() -> ModuleType:
    return script("ui")


def client(hosts: list[str] | None) -> TestClient:
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("in"))])
    app.add_middleware(Guard, hosts=hosts)
    return TestClient(app)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(host, 200) for host in ("localhost", "LocalHost:80", "127.0.0.1:7860", "[::1]:7860", "[::1]")],
        *[(host, 421) for host in ("evil.example", "evil.example:7860", "localhost.evil.example", "")],
    ],
)
def test_requests_to_foreign_host_names_are_refused(host: str, status: int) -> None:
    answer = client(["localhost", "127.0.0.1", "[::1]"]).get("/", headers={"Host": host})
    assert answer.status_code == status
    assert (answer.text == "in") is (status == 200)


def test_responses_forbid_loading_from_other_servers() -> None:
    answer = client(None).get("/", headers={"Host": "some.example"})
    assert answer.text == "in"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self' ")
    assert "http" not in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_are_recognized(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_other_addresses_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def refused(ui: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert ui.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_public_host_without_a_password_is_refused(ui: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--host 0.0.0.0 lets other machines see all runs" in refused(ui, capsys, "--host", "0.0.0.0")


@pytest.mark.parametrize(("text", "message"), [(None, "cannot read --password-file"), (" \n", "is empty")])
def test_missing_or_empty_password_is_refused(
    ui: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "password"
    if text is not None:
        file.write_text(text)
    assert message in refused(ui, capsys, "--host", "0.0.0.0", "--password-file", str(file))


def test_port_in_use_is_refused(ui: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert f"cannot listen on 127.0.0.1, port {port}" in refused(ui, capsys, "--port", port)
    assert "port 70000" in refused(ui, capsys, "--port", "70000")


def test_invalid_host_is_refused(ui: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sesame")
    for host in ("256.0.0.1", ".example", "x" * 70):
        error = refused(ui, capsys, "--host", host, "--password-file", str(tmp_path / "password"))
        assert f"cannot listen on {host}, port 7860" in error


def test_invalid_setting_is_refused(ui: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "unknown key 'rollout.eagerly'" in refused(
        ui, capsys, "--port", "0", "--runs", str(tmp_path), "rollout.eagerly=true"
    )
