"""Checks ground truths of given answers, as before a run. Writes the data to the current folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adagrpo_ray.config import Config
from adagrpo_ray.data.arithmetic import SYSTEM_PROMPT
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.rewards.ground_truth import check_ground_truths
from adagrpo_ray.toy.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(Config().data.format)


def config_of(*functions: str, data: dict[str, Any] | None = None, **rewards: Any) -> Config:
    return Config.model_validate(
        {
            "rewards": {"functions": [{"function": name} for name in functions], **rewards},
            "data": {"eval_prompts": 0, "source": "d.jsonl", "system_prompt": SYSTEM_PROMPT, **(data or {})},
            "algorithm": {"prompts_per_step": 1},
        }
    )


def check(config: Config, *answers: object, tokenizer: Any = TOKENIZER, **more: Any) -> tuple[str, ...]:
    rows = [{"prompt": f"{i}+{i}", "solution": answer} for i, answer in enumerate(answers)]
    Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check_ground_truths(config, load_prompts(config, tokenizer).train, tokenizer, **more)
