"""The promises of SECURITY.md: tokens, no pickles, no remote code, no secrets left behind."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import ray

from adagrpo_ray.cluster.connecting import connect
from adagrpo_ray.config import Config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.pretrained import load_tokenizer, resolve_model
from tests.support.authentication import without_tokens
from tests.support.held import until
from tests.support.pickles import plant
from tests.support.places import ROOT

FLOAT32 = {"dtype": "float32"}


# --- tokens ---

# Ray replaces 127.0.0.1 by the address by which other machines reach the node, on which a local Ray does not listen. A
# client that is refused tries twenty times.
SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_NUM_REDIS_GET_RETRIES": "3", "RAY_worker_niceness": "0"}
CLIENT = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print(ray.cluster_resources()['CPU'])"


def client(address: str, home: Path, **token: str) -> subprocess.CompletedProcess[str]:
    """Start another program on this machine that joins the cluster, with a home folder that has no token."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | SETTINGS | token
    env |= {"HOME": str(home)}
    command = [sys.executable, "-c", CLIENT, address]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def listening(*processes: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses and ports on which these processes listen."""
    found = [connection for process in processes for connection in process.net_connections("inet")]
    return {connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN}


def run_on(address: str, folder: Path, **token: str) -> subprocess.CompletedProcess[str]:
    """Start a run of the program that joins the cluster."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | SETTINGS | token
    env |= {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")), "HOME": str(folder)}
    command = [
        sys.executable,
        "launch/train.py",
        f"run.ray_address={address}",
        f"run.output_dir={folder / f'runs{len(token)}'}",
    ]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="class")
def ours() -> Iterator[set[tuple[str, int]]]:
    """Start a local Ray in an environment without tokens; return the addresses where this process listened before."""
    me = psutil.Process()
    before = listening(me, *me.children(recursive=True))
    with without_tokens(), pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")  # of other clusters; a Ray that we start ignores it
        with connect(Config(), None):
            ray.get(ray.remote(lambda: None).remote())  # so that there is a worker too
            yield before


class TestLocalRay:
    def test_refuses_programs_without_token(self, ours: set[tuple[str, int]], tiny_model: Path, tmp_path: Path) -> None:
        address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        nothing: dict[str, str] = {}
        mode, right, wrong = {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN": token}, {"RAY_AUTH_TOKEN": "0" * 64}
        with ThreadPoolExecutor() as threads:  # a client that is refused tries again for a while
            good, *refused = threads.map(
                lambda tokens: client(address, tmp_path, **tokens), (mode | right, nothing, mode | wrong)
            )
            runs = [*threads.map(lambda tokens: run_on(address, tmp_path, **tokens), (nothing, mode))]
        assert good.returncode == 0, good.stderr
        assert float(good.stdout) >= 1
        assert [(done.returncode != 0, done.stdout) for done in refused] == [(True, "")] * 2
        assert [run.returncode for run in runs] == [2, 2]
        for run, expected in zip(
            runs, ("that takes requests with no token", "takes no request without its token"), strict=True
        ):
            *_, error = run.stderr.splitlines()  # before it Ray may warn
            assert error.startswith("error: ")
            assert expected in error
            assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token" in error
        shown = [file for file in session.rglob("*") if file.is_file() and token.encode() in file.read_bytes()]
        assert shown == []
        assert len(token) == 64
        assert not (tmp_path / ".ray").exists()  # nor is there a token in a file

    def test_listens_on_loopback_only(self, ours: set[tuple[str, int]]) -> None:
        me = psutil.Process()
        processes = me.children(recursive=True)
        metrics = ray.nodes()[0]["MetricsExportPort"]
        until(lambda: ("127.0.0.1", metrics) in listening(*processes))
        addresses = listening(me, *processes) - ours
        assert {address.removeprefix("::ffff:") for address, _ in addresses} == {"127.0.0.1"}


# --- pickles ---


def test_pickles_next_to_safetensors_are_not_read(tiny_model: Path, tmp_path: Path) -> None:
    model, marker = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "marker"
    plant(model, marker)
    config = Config.model_validate({"model": {"path": str(model), **FLOAT32}})
    assert resolve_model(config) == str(model)
    load_tokenizer(str(model), config.model, config.data)
    policy = load_policy(str(model), config)
    policy.save_pretrained(tmp_path / "adapter")
    plant(tmp_path / "adapter", marker)
    again = Config.model_validate({"model": {"path": str(model), "adapter": str(tmp_path / "adapter"), **FLOAT32}})
    assert resolve_model(again) == str(model)
    load_policy(str(model), again)
    assert not marker.exists()


def test_pickled_models_and_adapters_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model, marker = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "marker"
    config = Config.model_validate({"model": {"path": str(model), **FLOAT32}})
    load_policy(str(model), config).save_pretrained(tmp_path / "adapter")
    for folder, weights in ((model, "model.safetensors"), (tmp_path / "adapter", "adapter_model.safetensors")):
        plant(folder, marker)
        (folder / weights).unlink()
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors; .*pickled weights are not read"):
        resolve_model(config)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_policy(str(model), config)
    adapted = Config.model_validate({"model": {"adapter": str(tmp_path / "adapter"), **FLOAT32}})
    for check in (resolve_model, lambda config: load_policy(str(tiny_model), config)):
        with pytest.raises(ModelError, match=r"holds no adapter_model\.safetensors"):
            check(adapted)
    assert not marker.exists()


def test_pickled_weights_named_by_config_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model, marker = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "marker"
    plant(model, marker)
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("{", '{"transformers_weights": "adapter_model.bin",', 1))
    with pytest.raises(ModelError, match=r"names pickled weights \(adapter_model\.bin\)"):
        resolve_model(Config.model_validate({"model": {"path": str(model)}}))
    assert not marker.exists()


def test_vllm_reads_safetensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from adagrpo_ray.rollout.engine import RolloutEngine

    recorded: dict[str, Any] = {}

    def record(**arguments: Any) -> Any:
        recorded.update(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(vllm, "AsyncEngineArgs", record)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(RolloutEngine.start("model", 64, Config()))
    assert recorded["load_format"] == "safetensors"
    assert recorded["trust_remote_code"] is False
    plant(tmp_path, tmp_path / "marker")
    loader = DefaultModelLoader(LoadConfig(load_format=recorded["load_format"]))
    with pytest.raises(RuntimeError, match="Cannot find any model weights"):
        loader._prepare_weights(str(tmp_path), None, None, True, None)


# --- remote code ---


def test_code_of_model_runs_only_with_trust_remote_code_and_a_notice(
    launch: ModuleType,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, marker = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "marker"
    (model / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import PretrainedConfig\n"
        f"Path({str(marker)!r}).touch()\n\nclass Own(PretrainedConfig):\n    model_type = 'own'\n"
    )
    text = (model / "config.json").read_text()
    text = re.sub(r'"model_type": "\w+"', '"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}', text)
    (model / "config.json").write_text(text)
    arguments = [f"run.output_dir={tmp_path / 'runs'}", f"model.path={model}"]
    assert launch.main(arguments) == 2
    captured = capsys.readouterr()
    assert not marker.exists()
    assert "config.json that cannot be used" in captured.err
    assert "warning" not in captured.out
    assert launch.main([*arguments, "model.trust_remote_code=true"]) == 2  # it is no causal language model
    assert f"warning: model.trust_remote_code=true runs Python code of {model}" in capsys.readouterr().out
    assert marker.exists()


# --- secrets ---
