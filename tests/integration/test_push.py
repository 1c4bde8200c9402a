"""Pushing to the Hub, with its own client, against a server on loopback that imitates it."""

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
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_nothing_is_sent_without_a_yes(hub: Hub, pushed: Pushed) -> None:
    code, said, _ = pushed("--private")
    assert code == 0
    assert "would push to https://huggingface.co/me/mine (private if new)" in said
    assert all(name in said for name in FILES)
    assert "5,000  model.safetensors" in said
    assert "left here: .env, model.part, pytorch_model.bin, run.py" in said
    assert "nothing was sent" in said
    assert hub.asked == []


def test_all_files_go_in_one_commit_and_no_others(hub: Hub, pushed: Pushed) -> None:
    code, said, errors = pushed("--yes", "--private")
    assert code == 0, errors
    assert hub.commits == [FILES]
    assert [created["visibility"] for created in hub.created] == ["private"]
    assert f"pushed: {hub.url}/me/mine/commit/1" in said
    assert hub.token not in said + errors


def test_an_adapter_of_a_run_can_be_pushed_as_it_is(hub: Hub, pushed: Pushed, tmp_path: Path) -> None:
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (adapter / name).write_text(name)
    assert pushed("--yes", folder=adapter.parent)[0] == 0
    assert set(hub.commits[0]) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_a_repository_that_is_there_gets_another_commit(hub: Hub, pushed: Pushed) -> None:
    hub.there = True
    assert pushed("--yes")[0] == 0
    assert hub.commits == [FILES]


def test_what_is_to_be_private_does_not_go_to_a_public_repository(hub: Hub, pushed: Pushed) -> None:
    hub.there = True
    code, _, said = pushed("--yes", "--private")
    assert code == 2
    assert "--private: me/mine is there already and public" in said
    assert hub.commits == []


def test_no_token(hub: Hub, pushed: Pushed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    code, _, said = pushed("--yes")
    assert code == 2
    assert said == "error: no token for the Hub: set HF_TOKEN, or log in with `hf auth login`\n"
    assert hub.asked == []


def test_a_token_that_is_not_good(hub: Hub, pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "bad0" * 5)
    code, _, said = pushed("--yes")
    assert code == 2
    assert said.startswith("error: the Hub does not take the token (")
    assert "bad0" not in said


@pytest.mark.parametrize("part", ["/repos/create", "/commit/"])
def test_a_token_that_may_not_write(hub: Hub, pushed: Pushed, part: str) -> None:
    hub.refuses = {part: 403, "/api/models/me/mine": 403}
    code, output, said = pushed("--yes")
    assert code == 2
    assert said.startswith("error: the token may not write to me/mine (")
    assert len(said.splitlines()) == 1
    assert hub.token not in output + said
    assert hub.commits == []


def test_no_network(hub: Hub, pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, said = pushed("--yes")
    assert code == 2
    assert said.startswith("error: cannot reach the Hub (")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, said = pushed("--yes")
    assert code == 2
    assert said.startswith("error: cannot reach the Hub (")


@pytest.mark.parametrize(
    "name", ["mine", "me/", "me/mine/too", ".me/x", "me/a--b", "me/a b", "https://huggingface.co/me"]
)
def test_a_name_that_is_none(hub: Hub, pushed: Pushed, name: str) -> None:
    code, _, said = pushed("--yes", name=name)
    assert code == 2
    assert said.startswith(f"error: --push={name!r} is no name of a repository; write OWNER/NAME")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("gone", "told"), [("README.md", "no model card"), ("model.safetensors", "no model"), ("config.json", "no model")]
)
def test_a_folder_that_is_no_model(hub: Hub, pushed: Pushed, model: Path, gone: str, told: str) -> None:
    (model / gone).unlink()
    code, _, said = pushed("--yes")
    assert code == 2
    assert told in said
    assert hub.asked == []
