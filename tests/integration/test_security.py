"""What SECURITY.md promises: tokens, no pickles, no code of others, no secrets left behind."""

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

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.pretrained import load_tokenizer, resolve_model
from adagrpo_ray.training.actors import connect
from tests.support.authentication import untold
from tests.support.held import until
from tests.support.pickles import plant
from tests.support.places import ROOT

FLOAT32 = {"dtype": "float32"}


# --- tokens ---

# Ray takes 127.0.0.1 for the address by which others reach the node, where a Ray of our own does not listen; and who is
# refused tries twenty times.
SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_NUM_REDIS_GET_RETRIES": "3", "RAY_worker_niceness": "0"}
CLIENT = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print(ray.cluster_resources()['CPU'])"


def client(address: str, home: Path, **token: str) -> subprocess.CompletedProcess[str]:
    """Another program of this machine that joins the cluster, with a home folder that has no token."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | SETTINGS | token
    env |= {"HOME": str(home)}
    command = [sys.executable, "-c", CLIENT, address]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def listening(*processes: psutil.Process) -> set[tuple[str, int]]:
    """The addresses and ports on which these processes listen."""
    found = [connection for process in processes for connection in process.net_connections("inet")]
    return {connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN}


def run_on(address: str, folder: Path, **token: str) -> subprocess.CompletedProcess[str]:
    """A run of the program that is to join the cluster."""
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
    """A Ray of our own, started where others ask for no token; the addresses where this process listened before."""
    me = psutil.Process()
    before = listening(me, *me.children(recursive=True))
    with untold(), pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")  # what others ask for is not for the one that we start
        with connect(Config(), None):
            ray.get(ray.remote(lambda: None).remote())  # so that there is a worker too
            yield before


class TestARayOfOurOwn:
    def test_it_refuses_whoever_has_no_token(
        self, ours: set[tuple[str, int]], tiny_model: Path, tmp_path: Path
    ) -> None:
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
        for run, told in zip(
            runs, ("that takes requests with no token", "takes no request without its token"), strict=True
        ):
            *_, error = run.stderr.splitlines()  # before it Ray may warn
            assert error.startswith("error: ")
            assert told in error
            assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token" in error
        shown = [file for file in session.rglob("*") if file.is_file() and token.encode() in file.read_bytes()]
        assert shown == []
        assert len(token) == 64
        assert not (tmp_path / ".ray").exists()  # nor is there a token in a file

    def test_it_listens_on_loopback_alone(self, ours: set[tuple[str, int]]) -> None:
        me = psutil.Process()
        processes = me.children(recursive=True)
        metrics = ray.nodes()[0]["MetricsExportPort"]
        until(lambda: ("127.0.0.1", metrics) in listening(*processes))
        addresses = listening(me, *processes) - ours
        assert {address.removeprefix("::ffff:") for address, _ in addresses} == {"127.0.0.1"}


# --- pickles ---


def test_pickles_beside_safetensors_are_not_read(tiny_model: Path, tmp_path: Path) -> None:
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


def test_models_and_adapters_that_are_pickles_are_refused(tiny_model: Path, tmp_path: Path) -> None:
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


def test_weights_that_a_config_says_are_pickled_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model, marker = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "marker"
    plant(model, marker)
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("{", '{"transformers_weights": "adapter_model.bin",', 1))
    with pytest.raises(ModelError, match=r"names pickled weights \(adapter_model\.bin\)"):
        resolve_model(Config.model_validate({"model": {"path": str(model)}}))
    assert not marker.exists()


def test_vllm_reads_safetensors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from adagrpo_ray.rollout.engine import RolloutEngine

    asked: dict[str, Any] = {}

    def record(**arguments: Any) -> Any:
        asked.update(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(vllm, "AsyncEngineArgs", record)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(RolloutEngine.start("model", 64, Config()))
    assert asked["load_format"] == "safetensors"
    assert asked["trust_remote_code"] is False
    plant(tmp_path, tmp_path / "marker")
    loader = DefaultModelLoader(LoadConfig(load_format=asked["load_format"]))
    with pytest.raises(RuntimeError, match="Cannot find any model weights"):
        loader._prepare_weights(str(tmp_path), None, None, True, None)


# --- code of others ---


def test_code_that_comes_with_a_model_runs_only_where_that_is_asked_for_and_said(
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
