"""Runs TRL's GRPOTrainer on the benchmark's task: trl_baseline.py OUT.json CONFIG --variant NAME [key=value ...].

Settings, base model, order of prompts, reward and adapter are the same; the method is GRPO with one update for each
batch. The variants are those of trl_variants.py. OUT.json has the metrics of one, or its "error" if it cannot run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl_variants import VARIANTS, Variant, common

from adagrpo_ray.config import Config
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.model.pretrained import load_tokenizer
from adagrpo_ray.rewards.registry import load_reward, score_group
from adagrpo_ray.training.preflight import check
from adagrpo_ray.types import Prompt

ROUNDS, WARM_UP = 20, 3  # steps, and the number of first steps that are not counted


class Meter(TrainerCallback):
    """Scores by the configuration, and records the end, the generated tokens and the mean reward of each step."""

    def __init__(self, config: Config, prompts: Sequence[Prompt]) -> None:
        self._config, self._prompts = config, prompts
        self._functions = [(load_reward(f.function), f.weight) for f in config.rewards.functions]
        self.ended: list[float] = []  # time.perf_counter at the end of each step
        self.tokens: list[int] = []
        self.rewards: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(time.perf_counter())

    def reward(self, completions: list[str], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        """A reward function with TRL's signature; the completions of a group are consecutive."""
        size, rewards = self._config.algorithm.group_size, list[float]()
        for start in range(0, len(completions), size):
            prompt = self._prompts[row[start]]
            scores = score_group(
                self._functions,
                completions=completions[start : start + size],
                answer=prompt.answer,
                prompt=prompt.text,
                format=self._config.data.format,
                difficulty=prompt.difficulty,
                columns=prompt.columns,
            )
            rewards += scores.rewards.tolist()
        self.tokens.append(sum(map(len, completion_ids)))
        self.rewards.append(statistics.mean(rewards))
        return rewards

    def metrics(self) -> dict[str, Any]:
        """The metrics of the steps after the warm-up; tokens are generated completion tokens."""
        a, tokens = self._config.algorithm, self.tokens[WARM_UP:]
        seconds = [after - before for before, after in pairwise(self.ended[WARM_UP - 1 :])]
        return {
            "tokens_per_s": sum(tokens) / sum(seconds),
            "seconds_per_step": statistics.median(seconds),
            "seconds": seconds,
            "mean_completion_length": sum(tokens) / (len(tokens) * a.prompts_per_step * a.group_size),
            "final_reward": statistics.mean(self.rewards[-5:]),
            "rewards": self.rewards,
        }


def run(variant: Variant, config: Config) -> dict[str, Any]:
    """Train with this variant in this process; its metrics."""
    inputs = check(config)
    with tempfile.TemporaryDirectory() as output:
        arguments = common(config, output) | variant(config, inputs)
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM
        from trl import GRPOConfig, GRPOTrainer

        order = PromptOrder(inputs.prompts.train, config.run.seed, config.data.shuffle)
        prompts = [p for p, _ in order.take(config.run.steps * config.algorithm.prompts_per_step)]
        tokenizer = load_tokenizer(inputs.model_path, config.model, config.data)
        texts = tokenizer.batch_decode([p.token_ids for p in prompts])
        again = tokenizer(text=texts)["input_ids"]
        if any(ids != p.token_ids.tolist() for ids, p in zip(again, prompts, strict=True)):
            raise ValueError("TRL would tokenize the prompts differently")
        lora, meter = config.model.lora, Meter(config, prompts)
        dtype = getattr(torch, config.model.dtype)
        GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(inputs.model_path, dtype=dtype, attn_implementation="sdpa"),
            reward_funcs=meter.reward,
            args=GRPOConfig(**arguments),
            train_dataset=Dataset.from_list([{"prompt": text, "row": row} for row, text in enumerate(texts)]),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                task_type="CAUSAL_LM",
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=list(lora.targets),
            ),
            callbacks=[meter],
        ).train()
        return meter.metrics()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("config", help="YAML file of settings")
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("overrides", nargs="*", help="settings that override the file's, as key=value")
    given = parser.parse_intermixed_args()
    overrides = [f"run.steps={ROUNDS}", "data.eval_prompts=0", "algorithm.name=grpo", *given.overrides]
    config = Config.load(given.config, overrides)
    metrics: dict[str, Any]
    try:
        metrics = run(VARIANTS[given.variant], config)
    except Exception as error:
        metrics = {"error": f"{type(error).__name__}: {last_line(str(error))}"}
    print(given.variant, json.dumps(metrics))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
