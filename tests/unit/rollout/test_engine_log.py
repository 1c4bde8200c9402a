"""The place of vLLM's log: the run folder, or a file of the node that is copied to a run folder at a URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from adagrpo_ray.rollout.engine_log import EngineLog, logging_to
from adagrpo_ray.storage import places as storage


def test_nodes_append_to_the_run_folder_that_they_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineLog(str(tmp_path / "run"), "rollout actor 0").file == tmp_path / "run/vllm/rollout-actor-0.log"
    assert EngineLog(f"file://{tmp_path}/run", "rollout actor 3").file == tmp_path / "run/vllm/rollout-actor-3.log"
    monkeypatch.chdir(tmp_path)
    assert EngineLog("runs/run", "rollout actor 0").file == tmp_path / "runs/run/vllm/rollout-actor-0.log"


def test_a_run_folder_at_a_url_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    home = "memory://bucket/runs/one"
    log = EngineLog(home, "rollout actor 0")
    assert log.file.is_relative_to(tmp_path)
    assert log.file != EngineLog("memory://bucket/runs/two", "rollout actor 0").file
    log.copy()  # there is no file yet, which is no error
    log.file.parent.mkdir(parents=True)
    for text in ("KV cache\n", "KV cache\nslept\n"):
        log.file.write_text(text)
        log.copy()
        assert storage.find(home, "vllm/rollout-actor-0.log") == text
    log.copy(last=True)
    assert not log.file.exists()
    assert storage.find(home, "vllm/rollout-actor-0.log") == "KV cache\nslept\n"


def test_logging_of_the_environment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with logging_to(None) as config:
        assert config is None
    for name, value in (("VLLM_LOGGING_CONFIG_PATH", "mine.json"), ("VLLM_CONFIGURE_LOGGING", "0")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with logging_to(tmp_path / "vllm/a.log") as config:
                assert config is None
    assert list(tmp_path.iterdir()) == []
