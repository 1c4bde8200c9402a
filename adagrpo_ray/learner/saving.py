"""Saves a learner: checkpoints, and the adapter in PEFT's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from adagrpo_ray.cards.card import CARD
from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.checkpoint import kept
from adagrpo_ray.data.template_choice import TEMPLATE_FILE
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.engine_state import EngineState
from adagrpo_ray.model.folder import ADAPTER_WEIGHTS
from adagrpo_ray.runs.group_codec import Arrays
from adagrpo_ray.storage.places import outgoing

MOMENTS, RANDOM = "optimizer.safetensors", "random.safetensors"
SAMPLER, SAMPLER_ARRAYS = "sampler.json", "sampler.safetensors"


def save_checkpoint(
    folder: str,
    engine: EngineState,
    sampler: tuple[dict[str, Any], Arrays],
    progress: checkpoint.Progress,
    save_total_limit: int,
    accuracies: Mapping[int, float],
) -> None:
    """Write a checkpoint into `folder`; `sampler` is from `Collector.state`, `accuracies` as in `checkpoint.save`."""
    plain, arrays = sampler
    counts = {"optimizer_steps": engine.optimizer_steps, "skipped_in_a_row": engine.skipped_in_a_row}
    contents = {
        checkpoint.WEIGHTS: engine.weights,
        MOMENTS: engine.moments,
        RANDOM: engine.random,
        SAMPLER_ARRAYS: arrays,
        SAMPLER: plain,
        checkpoint.STATE: {**asdict(progress), **counts},
    }
    kept.save(folder, progress.step, contents, save_total_limit, accuracies)


def load_checkpoint(path: str) -> tuple[EngineState, dict[str, Any], Arrays]:
    """Read the checkpoint at a path or URL: the arguments `engine` and `sampler` of `save_checkpoint`."""
    files = kept.load(path)
    state = files[checkpoint.STATE]
    engine = EngineState(
        weights=files[checkpoint.WEIGHTS],
        moments=files[MOMENTS],
        random=files[RANDOM],
        optimizer_steps=state["optimizer_steps"],
        skipped_in_a_row=state.get("skipped_in_a_row", 0),  # missing in checkpoints of earlier versions
    )
    return engine, files[SAMPLER], files[SAMPLER_ARRAYS]


def save_adapter(
    folder: str, engine: LearnerEngine, tensors: dict[str, torch.Tensor], card: str, template: str | None
) -> None:
    """Write `tensors` of `LearnerEngine.adapter` in PEFT's layout, the model card, and the chat template of the run.

    Raises ResourceError if `folder`, a path or a URL, cannot be written; earlier files there are then unchanged.
    """
    with outgoing(folder) as local:
        _write_peft(local, engine.peft_config, tensors)
        (local / CARD).write_text(card, encoding="utf-8", errors="replace")
        if template:
            (local / TEMPLATE_FILE).write_text(template, encoding="utf-8")


def _write_peft(folder: Path, peft_config: Any, tensors: dict[str, torch.Tensor]) -> None:
    """PEFT's two files: adapter_config.json and adapter_model.safetensors."""
    # Not `save_file`: other users cannot read its files.
    (folder / ADAPTER_WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    peft_config.inference_mode = True
    peft_config.save_pretrained(str(folder))
    peft_config.inference_mode = False
