"""Who gets in to the web pages, and what launch/ui.py refuses before anything is served."""

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
def test_only_this_machines_names_are_answered_to(host: str, status: int) -> None:
    answer = client(["localhost", "127.0.0.1", "[::1]"]).get("/", headers={"Host": host})
    assert answer.status_code == status
    assert (answer.text == "in") is (status == 200)


def test_with_a_password_any_name_will_do_and_nothing_is_fetched_from_elsewhere() -> None:
    answer = client(None).get("/", headers={"Host": "some.example"})
    assert answer.text == "in"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self' ")
    assert "http" not in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_what_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def refused(ui: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert ui.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_an_open_host_without_a_password_is_refused(ui: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--host 0.0.0.0 lets other machines in" in refused(ui, capsys, "--host", "0.0.0.0")


@pytest.mark.parametrize(("text", "told"), [(None, "cannot read --password-file"), (" \n", "is empty")])
def test_a_password_that_is_none_is_refused(
    ui: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, told: str
) -> None:
    file = tmp_path / "password"
    if text is not None:
        file.write_text(text)
    assert told in refused(ui, capsys, "--host", "0.0.0.0", "--password-file", str(file))


def test_a_port_that_is_taken_is_refused(ui: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1, port {port}" in refused(ui, capsys, "--port", port)
    assert "port 70000" in refused(ui, capsys, "--port", "70000")


def test_a_host_that_is_none_is_refused(ui: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sesame")
    for host in ("256.0.0.1", ".example", "x" * 70):
        told = refused(ui, capsys, "--host", host, "--password-file", str(tmp_path / "password"))
        assert f"cannot listen on {host}, port 7860" in told


def test_a_bad_setting_is_refused(ui: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "unknown key 'rollout.eagerly'" in refused(
        ui, capsys, "--port", "0", "--runs", str(tmp_path), "rollout.eagerly=true"
    )
