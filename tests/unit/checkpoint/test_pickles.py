"""No pickle in a checkpoint is loaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.errors import CheckpointError
from tests.support.pickles import plant


def test_bomb_runs_code_when_unpickled(tmp_path: Path) -> None:
    plant(tmp_path, tmp_path / "marker")
    for name in ("pytorch_model.bin", "tokenizer.pkl"):
        torch.load(tmp_path / name, weights_only=False) if name.endswith("bin") else pickle.loads(
            (tmp_path / name).read_bytes()
        )
        assert (tmp_path / "marker").exists()
        (tmp_path / "marker").unlink()


def test_checkpoint_with_pickle_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    checkpoint.save(tmp_path, 1, {"state.json": {}}, save_total_limit=1)
    path = tmp_path / "step-000001"
    plant(path, marker)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)
    (path / checkpoint.CHECKSUMS).write_bytes(checkpoint._checksums(path))  # by somebody who knows how they are made
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        checkpoint.load(path)
    assert not marker.exists()
