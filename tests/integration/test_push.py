"""Uploads to the Hub with its own client, against a fake Hub on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.hub import Hub, serving
from tests.support.scripts import script

FILES = {"README.md": b"---\nlicense: mit\n---\n# A card\n", "config.json": b"{}", "model.safetensors": b"\0" * 5000}
SECRETS = {".env": b"x", "run.py": b"print()", "pytorch_model.bin": b"pickle", "model.part": b"half"}

Pushed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", running.token)
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in {**FILES, **SECRETS}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def pushed(model: Path, capsys: pytest.CaptureFixture[str]) -> Pushed:
    def run(*options: str, folder: Path = model, name: str = "me/mine") -> tuple[int, str, str]:
        code = script("export").main([str(folder), "--push", name, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_nothing_is_uploaded_without_yes(hub: Hub, pushed: Pushed) -> None:
    code, output, _ = pushed("--private")
    assert code == 0
    assert "would push to https://huggingface.co/me/mine (private if new)" in output
    assert all(name in output for name in FILES)
    assert "5,000  model.safetensors" in output
    assert "not uploaded: .env, model.part, pytorch_model.bin, run.py" in output
    assert "nothing was sent" in output
    assert hub.requested == []


def test_files_are_uploaded_in_one_commit(hub: Hub, pushed: Pushed) -> None:
    code, output, errors = pushed("--yes", "--private")
    assert code == 0, errors
    assert hub.commits == [FILES]
    assert [created["visibility"] for created in hub.created] == ["private"]
    assert f"pushed: {hub.url}/me/mine/commit/1" in output
    assert hub.token not in output + errors


def test_adapter_of_a_run_is_pushed_without_an_export(hub: Hub, pushed: Pushed, tmp_path: Path) -> None:
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (adapter / name).write_text(name)
    assert pushed("--yes", folder=adapter.parent)[0] == 0
    assert set(hub.commits[0]) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_existing_repository_gets_a_commit(hub: Hub, pushed: Pushed) -> None:
    hub.exists = True
    assert pushed("--yes")[0] == 0
    assert hub.commits == [FILES]


def test_private_refuses_a_public_repository(hub: Hub, pushed: Pushed) -> None:
    hub.exists = True
    code, _, error = pushed("--yes", "--private")
    assert code == 2
    assert "--private: me/mine exists already and is public" in error
    assert hub.commits == []


def test_missing_token_is_refused(hub: Hub, pushed: Pushed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    code, _, error = pushed("--yes")
    assert code == 2
    assert error == "error: no token for the Hub: set HF_TOKEN, or log in with `hf auth login`\n"
    assert hub.requested == []


def test_invalid_token_is_refused(hub: Hub, pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "bad0" * 5)
    code, _, error = pushed("--yes")
    assert code == 2
    assert error.startswith("error: the Hub refuses the token (")
    assert "bad0" not in error


@pytest.mark.parametrize("part", ["/repos/create", "/commit/"])
def test_token_without_write_access_is_refused(hub: Hub, pushed: Pushed, part: str) -> None:
    hub.refuses = {part: 403, "/api/models/me/mine": 403}
    code, output, error = pushed("--yes")
    assert code == 2
    assert error.startswith("error: the token may not write to me/mine (")
    assert len(error.splitlines()) == 1
    assert hub.token not in output + error
    assert hub.commits == []


def test_missing_network_is_an_error(hub: Hub, pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, error = pushed("--yes")
    assert code == 2
    assert error.startswith("error: cannot reach the Hub (")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, error = pushed("--yes")
    assert code == 2
    assert error.startswith("error: cannot reach the Hub (")


@pytest.mark.parametrize(
    "name", ["mine", "me/", "me/mine/too", ".me/x", "me/a--b", "me/a b", "https://huggingface.co/me"]
)
def test_invalid_repository_name_is_refused(hub: Hub, pushed: Pushed, name: str) -> None:
    code, _, error = pushed("--yes", name=name)
    assert code == 2
    assert error.startswith(f"error: --push={name!r} is not OWNER/NAME; give a repository")
    assert hub.requested == []


@pytest.mark.parametrize(
    ("gone", "message"),
    [("README.md", "no model card"), ("model.safetensors", "no model"), ("config.json", "no model")],
)
def test_folder_without_a_model_is_refused(hub: Hub, pushed: Pushed, model: Path, gone: str, message: str) -> None:
    (model / gone).unlink()
    code, _, error = pushed("--yes")
    assert code == 2
    assert message in error
    assert hub.requested == []
