"""Makes a run folder with an adapter, without training, and has the recipe of the smallest base model."""

from __future__ import annotations

from pathlib import Path

import torch

from adagrpo_ray.config import Config
from adagrpo_ray.config.listing import as_yaml
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.identity import fingerprint
from adagrpo_ray.toy.training import Recipe
from tests.support.places import TINY

SHORT = Recipe(hidden=32, intermediate=32, heads=1, layers=1, steps=4, batch=2, warmup=0.5)
CONFIG = Config.load(TINY, ["data.eval_prompts=3", "data.train_prompts=1"])


def make_run(folder: Path, model: Path, config: Config = CONFIG, spread: float = 0.05) -> Path:
    """Make a run folder with a random adapter, whose standard deviation `spread` is large enough to change answers."""
    policy = load_policy(str(model), config)
    noise = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, spread, generator=noise)
    policy.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").write_text(
        f"---\ntags: [lora]\nadagrpo_ray: {{base_fingerprint: {fingerprint(model)}}}\n---\n\n# run\n"
    )
    (folder / "config.yaml").write_text(as_yaml(config))
    return folder
