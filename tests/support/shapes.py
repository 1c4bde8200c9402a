"""The shape of Qwen3-1.7B, by its config.json."""

from __future__ import annotations

from adagrpo_ray.model.shape import Shape

SHAPE = Shape(
    hidden=2048,
    layers=28,
    intermediate=6144,
    heads=16,
    kv_heads=8,
    head_dim=128,
    vocabulary=151936,
    tied=True,
    model_type="qwen3",
)
