"""A full or read-only disk gives one clear error, keeps the last good checkpoint, and the run resumes with room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from adagrpo_ray.checkpoint import kept
from adagrpo_ray.checkpoint.files import check, load, newest, save
from adagrpo_ray.config.data import ArithmeticSettings, FormatSettings
from adagrpo_ray.errors import CheckpointError, ConfigError, ModelError, ResourceError
from adagrpo_ray.export.exporting import ExportRequest, export
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.saving import save_adapter
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.runs import RunWriter
from adagrpo_ray.runs.history import Mark, sizes
from adagrpo_ray.storage import places as storage
from adagrpo_ray.toy.tiny import build_tiny_model
from tests.support.histories import BEFORE, STEP
from tests.support.program import launch, metrics, settings, train
from tests.support.trained import SHORT, make_run

PAGE = 4096
FULL, READ_ONLY = r"\(No space left on device\)", r"\(Read-only file system\)"


@dataclass(frozen=True)
class Disk:
    """A small separate file system."""

    folder: Path

    def remount(self, options: str) -> None:
        """Make the file system larger ("size=1m") or read-only ("ro")."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def fill(self, free: int = 0) -> None:
        """Fill the file system up to `free` pages."""
        ballast = self.folder / "ballast"
        size = ballast.stat().st_size if ballast.exists() else 0
        with ballast.open("ab", buffering=0) as file:
            with suppress(OSError):
                while True:
                    size += file.write(bytes(PAGE))
            file.truncate(size - free * PAGE)

    def clear(self) -> None:
        """Remove the file that `fill` wrote."""
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk without the right to mount one ({error})")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


def contents(value: float) -> dict[str, Any]:
    """Return contents of three pages; the checksums take a fourth one."""
    return {"state.json": {"value": value}, "adapter.safetensors": {"a": np.full(1500, value, np.float32)}}


@pytest.mark.parametrize("free", range(8))
def test_checkpoint_on_full_disk_keeps_earlier_ones(disk: Disk, free: int) -> None:
    """A checkpoint takes four pages, and a fifth for the file that names it; each of them in turn does not fit."""
    folder = disk.folder / "checkpoints"
    save(folder, 1, contents(1), 1, {1: 0.5})
    disk.fill(free)
    with nullcontext() if free >= 5 else pytest.raises(CheckpointError) as caught:
        save(folder, 2, contents(2), 1, {1: 0.5, 2: 0.25})
    if caught is not None:
        assert str(caught.value).startswith(f"cannot write {folder}/")
        assert str(caught.value).endswith("(No space left on device); free or unlock that place")
        assert newest(folder, print) == folder / "step-000001"
        assert not list(folder.glob("step-*.part"))  # its room is for others
    check(folder / "step-000001")
    assert (folder / "best").read_text() == "step-000001\n"
    disk.clear()
    save(folder, 2, contents(2), 1, {1: 0.5, 2: 0.25})
    assert newest(folder, print) == folder / "step-000002"
    assert sorted(path.name for path in folder.iterdir()) == ["best", "latest", "step-000001", "step-000002"]


def test_checkpoint_on_read_only_disk_is_refused(disk: Disk) -> None:
    folder = disk.folder / "checkpoints"
    save(folder, 1, contents(1), 1)
    disk.remount("ro")
    with pytest.raises(CheckpointError, match=rf"^cannot write {folder}/step-000002 {READ_ONLY}; free or unlock"):
        save(folder, 2, contents(2), 1)
    assert load(newest(folder, print) or folder)["state.json"] == {"value": 1}


def test_failed_start_of_run_folder_leaves_its_name_free(disk: Disk) -> None:
    for free in (0, 1):  # for its configuration
        disk.fill(free)
        with pytest.raises(ResourceError, match=rf"^cannot write {disk.folder}/run {FULL}; free .* run\.output_dir to"):
            RunWriter(disk.folder / "run", "a: 1\n")
    disk.clear()
    RunWriter(disk.folder / "run", "a: 1\n").close()
    disk.remount("ro")
    with pytest.raises(ResourceError, match=rf"^cannot write {disk.folder}/other {READ_ONLY}; free or unlock"):
        RunWriter(disk.folder / "other", "a: 1\n")
    with pytest.raises(ConfigError, match=rf"cannot write {disk.folder}/probe-.* {READ_ONLY}"):
        storage.probe(str(disk.folder))


def write(writer: RunWriter, steps: range) -> None:
    for step in steps:
        writer.step(replace(STEP, step=step))


def test_run_resumes_after_lines_did_not_fit(disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    folder = disk.folder / "run"
    writer = RunWriter(folder, "a: 1\n")
    writer.evaluation("before", BEFORE)
    writer.step(STEP)
    mark = Mark(1, sizes(folder))
    disk.fill()
    with (
        pytest.raises(ResourceError, match=rf"^cannot write {folder}/(metrics.jsonl|tensorboard) {FULL}; free"),
        writer,
    ):
        write(writer, range(2, 100))
    with pytest.raises(ResourceError, match=rf"^cannot write {folder}/config.yaml {FULL}"):
        RunWriter(folder, "b: 2\n", mark)
    assert (folder / "config.yaml").read_text() == "a: 1\n"
    disk.clear()
    with RunWriter(folder, "b: 2\n", mark) as writer:
        writer.step(replace(STEP, step=2))
    steps, evaluations = Mark(2, sizes(folder)).read(folder)
    assert ([step.step for step in steps], evaluations) == ([1, 2], [BEFORE])
    assert capfd.readouterr() == ("", "")  # no thread complains for itself


def test_adapter_on_full_disk_keeps_earlier_one(disk: Disk) -> None:
    engine = object.__new__(LearnerEngine)
    engine._policy = SimpleNamespace(peft_model=SimpleNamespace(peft_config={"default": LoraConfig(r=1)}))  # type: ignore[assignment]
    folder, files = disk.folder / "adapter", ["adapter_config.json", "adapter_model.safetensors", "README.md"]

    def write(value: float) -> None:
        save_adapter(str(folder), engine, {"a": torch.full((4000,), value)}, card=f"{value}" * 4000, template=None)

    write(1)
    before = [(folder / name).read_bytes() for name in files]
    disk.fill(free=2)
    with pytest.raises(ResourceError, match=rf"^cannot write {folder} {FULL}; free or unlock that place$"):
        write(2)
    assert [(folder / name).read_bytes() for name in files] == before
    assert sorted(path.name for path in disk.folder.iterdir()) == ["adapter", "ballast"]
    disk.clear()
    write(2)
    assert (folder / files[1]).read_bytes() != before[1]


def test_export_on_full_disk_leaves_no_files(
    disk: Disk, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", tiny_model)
    request = ExportRequest(str(run), disk.folder / "model", check=False)
    with pytest.raises(ResourceError, match=rf"takes 2\.6 MiB, {disk.folder} has \S+ MiB free; make room$"):
        export(request, print)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: SimpleNamespace(free=2**40)
    )  # as if another one took it meanwhile
    with pytest.raises(ResourceError, match=rf"^cannot write {disk.folder}/model .*No space left on device"):
        export(request, print)
    assert list(disk.folder.iterdir()) == []
    disk.remount("size=8m")
    assert (export(request, print) / "model.safetensors").is_file()


@pytest.mark.parametrize("free", [0, 1, 4, 16])
def test_tiny_model_on_full_disk_leaves_no_folder(disk: Disk, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Each of its files in turn is the first that does not fit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk.folder))
    settings = (ArithmeticSettings(), FormatSettings(), SHORT)
    disk.fill(free)
    with pytest.raises(ModelError, match=rf"^cannot write the tiny model to {disk.folder}/.*XDG_CACHE_HOME") as caught:
        build_tiny_model(*settings)
    assert "No space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    disk.clear()
    if free == 0:
        assert (build_tiny_model(*settings) / "model.safetensors").exists()


def test_error_names_cache_that_cannot_be_written(disk: Disk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk.folder))
    disk.remount("ro")
    with pytest.raises(ModelError, match=rf"^cannot write the tiny model to {disk.folder}/.*Read-only file system"):
        build_tiny_model(ArithmeticSettings(), FormatSettings(), SHORT)
    with pytest.raises(ModelError, match=rf"^cannot write the tiny model to {disk.folder}/.* {READ_ONLY}"):
        ModelFiles("/no/such/folder", {"config.json": b"{}"}).here()
    with (
        pytest.raises(ResourceError, match=rf"^cannot write {disk.folder}/adagrpo_ray/scratch {READ_ONLY}"),
        storage.scratch(),
    ):
        pass


def test_error_names_cache_without_room_for_run_at_url(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk.folder))
    folder = "memory://full-disk/run/checkpoints"
    kept.save(folder, 1, contents(1), 1)
    disk.fill(free=1)
    with pytest.raises(ModelError, match=rf"^cannot write the tiny model to {disk.folder}/.* {FULL}"):
        ModelFiles("/no/such/folder", {"model.safetensors": bytes(3 * PAGE)}).here()
    with pytest.raises(CheckpointError, match=rf"^cannot write {disk.folder}/.*step-000002 {FULL}; free"):
        kept.save(folder, 2, contents(2), 1)
    with pytest.raises(CheckpointError, match=rf"read {folder}/.* into {disk.folder}/.* {FULL}; free"):
        kept.load(f"{folder}/step-000001")
    with (
        pytest.raises(ResourceError, match=rf"^cannot write {disk.folder}/.* {FULL}; free"),
        storage.outgoing("memory://full-disk/run/adapter") as local,
    ):
        (local / "a").write_bytes(bytes(3 * PAGE))
    assert not list((disk.folder / "adagrpo_ray" / "scratch").iterdir())
    assert storage.files("memory://full-disk/run") == {
        *("checkpoints/latest", "checkpoints/step-000001/adapter.safetensors"),
        *("checkpoints/step-000001/checksums.json", "checkpoints/step-000001/state.json"),
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_on_full_disk_ends_with_error_and_resumes_with_room(disk: Disk, whole: Path) -> None:
    """Two checkpoints fit, and a third does not."""
    one = sum(-(-file.stat().st_size // PAGE) * PAGE for file in (whole / "checkpoints" / "step-000004").iterdir())
    disk.remount(f"size={2 * one + one // 2}")
    folder = disk.folder / "run"
    ended = launch("--config", "launch/configs/tiny-cpu.yaml", *settings(disk.folder, 4), "checkpoint.every=1")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.splitlines() == [
        f"error: cannot write {folder}/checkpoints/step-000003 (No space left on device); free or unlock that place"
    ]
    assert newest(folder / "checkpoints", print) == folder / "checkpoints" / "step-000002"

    disk.remount("size=64m")
    output = train(disk.folder, 4, "--resume", "auto")

    assert f"resuming after step 2, from {folder}/checkpoints/step-000002" in " ".join(output.split())
    assert metrics(folder) == metrics(whole)
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (whole / adapter).read_bytes()
