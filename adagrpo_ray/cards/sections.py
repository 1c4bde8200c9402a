"""Makes the sections of a model card, in Markdown that ends with a newline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from adagrpo_ray.config.algorithm import TriggerSettings
from adagrpo_ray.config.reasoning_gym import REASONING_GYM
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.arithmetic import ARITHMETIC
from adagrpo_ray.data.source import is_generated, is_hub_name
from adagrpo_ray.model.gguf_file import base_name
from adagrpo_ray.model.identity import TINY, ModelIdentity
from adagrpo_ray.runs.markdown import cell, code, fenced, literal
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.runs.wording import change, difficulties, few, number, rungs, shown, whole
from adagrpo_ray.types import SamplingParams

METHODS = {"adagrpo": "adaptive GRPO", "grpo": "GRPO", "dapo": "DAPO's dynamic sampling"}
SHOWN = (
    *("algorithm.name", "run.steps", "run.seed", "algorithm.prompts_per_step", "algorithm.group_size"),
    *("algorithm.criterion.kind", "algorithm.criterion.threshold", "algorithm.resample", "algorithm.on_exhausted"),
    *(
        "algorithm.advantage_scale",
        "algorithm.advantage_statistics",
        "algorithm.allocation.enabled",
        "algorithm.allocation.rule",
    ),
    *("algorithm.budget", "algorithm.max_staleness"),
    *("algorithm.loss.kind", "algorithm.loss.epsilon", "algorithm.loss.epsilon_high", "algorithm.loss.beta"),
    *("algorithm.loss.correction", "algorithm.loss.correction_mode", "algorithm.loss.correction_floor"),
    *("algorithm.loss.correction_cap", "algorithm.loss.entropy_coef", "algorithm.loss.mask_truncated_completions"),
    "algorithm.overlong_buffer",
    *(
        "learner.learning_rate",
        "learner.schedule",
        "learner.warmup_ratio",
        "learner.weight_decay",
        "learner.max_grad_norm",
    ),
    *("model.lora.r", "model.lora.alpha", "model.lora.dropout", "model.lora.targets", "model.dtype"),
    *("rollout.max_new_tokens", "rewards.correct_by", "rewards.correct_above"),
)
"""Settings in the table of the card, which also has all settings as YAML."""
ADAPTIVE = ("algorithm.criterion.", "algorithm.resample", "algorithm.on_exhausted", "algorithm.allocation.")
"""Prefixes of the keys that only adaptive GRPO uses."""


def base_in_words(base: ModelIdentity) -> str:
    """The base model, as a part of a sentence."""
    if base.on_hub:
        return f"[{base.name}](https://huggingface.co/{base.name})"
    if base.name == TINY:
        return "the tiny Qwen3 base model that adagrpo_ray trains on first use"
    if base.gguf is not None:
        return f"the model {code(base_name(base.name))} (SHA-256 {code(base.gguf.digest)})"
    return f"the model {code(PurePath(base.name).name)}"


def data_in_words(config: Config) -> str:
    """The data, as a part of a sentence."""
    source = config.data.source
    if source == ARITHMETIC:
        return "generated additions of two numbers"
    if source == REASONING_GYM:
        return "generated problems of [reasoning-gym](https://github.com/open-thought/reasoning-gym)"
    if not is_hub_name(source):
        return code(source_name(source))
    return f"[{source}](https://huggingface.co/datasets/{source})"


def source_name(source: str) -> str:
    """The name of the data: that on the Hub, or that of a file or folder without its path."""
    return source if is_generated(source) or is_hub_name(source) else PurePath(source).name


def base_model(base: ModelIdentity, adapter: str | None = None) -> str:
    """The base model, and the `adapter` that the training continued."""
    rows = [
        ("base model", base_in_words(base)),
        ("revision", code(base.revision) if base.revision else "not known" if base.on_hub else "-"),
        ("fingerprint of its weights", code(base.fingerprint) if base.fingerprint else "not known"),
        *([("made from", f"GGUF, {base.gguf.types}, dequantised to float32")] if base.gguf is not None else []),
        ("licence", base.license or "not known: see the base model's own card"),
    ]
    if adapter is not None:
        rows.append(("continues the adapter", code("/".join(PurePath(adapter).parts[-2:]))))
    return "## Base model\n\n" + _table(("", ""), rows)


def data(config: Config, prompts: tuple[int, int] | None) -> str:
    """The data of training and evaluation, the rewards, and the condition for a correct completion."""
    d, rewards = config.data, config.rewards
    rows = [("data", data_in_words(config))]
    if d.source == ARITHMETIC:
        rows.append(("classes", "digits of the summands: " + ", ".join(map(str, config.arithmetic.keep_carry))))
    elif d.source == REASONING_GYM:
        rows += [
            (f"task {literal(task.name)}", f"weight {task.weight:g}, {code(json.dumps(task.config, sort_keys=True))}")
            for task in config.reasoning_gym.tasks
        ]
    elif is_hub_name(d.source):
        rows.append(("subset, split", f"{d.subset or '-'}, {d.split}"))
    if prompts is not None:
        rows += [("prompts trained on", str(prompts[0])), ("prompts held out", str(prompts[1]))]
    for reward in rewards.functions:
        by = "" if reward.served is None else f", given by the model {literal(shown(reward.served.model))}"
        rows.append((f"reward: {literal(shown(reward.name))}", f"weight {reward.weight:g}{by}"))
    rows.append(("a completion is correct", f"if {literal(shown(rewards.decides))} is above {rewards.correct_above:g}"))
    return "## Data and rewards\n\n" + _table(("", ""), rows)


def training(config: Config) -> str:
    """The settings of the algorithm, and its ladder of resamples."""
    tree = config.model_dump(mode="json")
    adaptive = config.algorithm.name == "adagrpo"
    rows = [
        (code(key), _value(value))
        for key in SHOWN
        if (value := _at(tree, key)) is not None and (adaptive or not key.startswith(ADAPTIVE))
    ]
    rows += [(code(key), _value(value)) for key, value in config.resolved.items() if value is not None]
    text = f"## Training\n\nTrained by {METHODS[config.algorithm.name]} with these settings:\n\n" + _table(
        ("setting", "value"), rows
    )
    return text + "\n### Sampling, and the ladder of resamples\n\n" + _ladder(config)


def results(config: Config, summary: Summary) -> str:
    """Accuracy on held-out prompts and benchmarks before and after training, cost and result of resampling, tokens."""
    e = config.evaluation
    if summary.eval_accuracy_before is None and summary.eval_accuracy_after is None:
        accuracy = "Held-out accuracy was not evaluated.\n"
    else:
        named, others = few(
            difficulties([*summary.eval_accuracy_by_difficulty_before, *summary.eval_accuracy_by_difficulty_after])
        )
        before, after = summary.eval_accuracy_by_difficulty_before, summary.eval_accuracy_by_difficulty_after
        whole_set = _compared(summary.eval_accuracy_before, summary.eval_accuracy_after)
        rows = [("all", *whole_set, str(sum(summary.resamples)))] + [
            (
                literal(shown(name)),
                *_compared(before.get(name), after.get(name)),
                str(summary.resamples_by_difficulty.get(name, 0)),
            )
            for name in named
        ]
        rows += [(others, "", "", "", "")] if others else []
        accuracy = (
            f"Share of correct completions on held-out prompts, {e.samples} for each at temperature "
            f"{e.sampling.temperature:g}.\n\n" + _table(("class", "before", "after", "change", "resamples"), rows)
        )
    if summary.benchmarks:
        compared = [(name, *_compared(first, last)) for name, first, last in summary.benchmarks]
        accuracy += "\nOn benchmarks:\n\n" + _table(("benchmark", "before", "after", "change"), compared)
    cost = _table(
        ("", ""),
        [
            ("steps", f"{summary.steps} in {summary.seconds:,.0f} s"),
            ("tokens generated", f"{summary.generated_tokens:,}, of which {summary.extra_tokens:,} by resamples"),
            ("tokens trained on", f"{summary.trained_tokens:,}"),
            ("tokens for each informative group", whole(summary.tokens_per_informative_group)),
            ("resamples by rung", rungs(summary.resamples)),
            ("of these met the criterion", rungs(summary.rescued)),
            ("groups that never met it", str(summary.groups_exhausted)),
            ("groups that could not be generated or scored", str(summary.groups_failed)),
            ("updates skipped", str(summary.skipped_updates)),
        ],
    )
    return f"## Results\n\n{accuracy}\n{cost}"


def made(command: str | None, versions: Mapping[str, str], config: str) -> str:
    """The command, the versions of packages, and all settings."""
    text = "## How it was trained\n\n"
    text += f"{fenced(command, 'bash')}\n" if command else ""
    text += f"{_table(('package', 'version'), list(versions.items()))}\n" if versions else ""
    return f"{text}<details><summary>All settings</summary>\n\n{fenced(config, 'yaml')}\n</details>\n"


def merging(base: ModelIdentity, dtype: str, check: str | None) -> str:
    """How the adapter was merged, and the results of the check."""
    compared = f"Compared with the adapter on its base model: {check}.\n" if check else "It was not checked.\n"
    return (
        f"## Merge\n\nThe adapter was added to the original weights of {base_in_words(base)} in float32, and the sum "
        f"was stored in {dtype}. {compared}"
    )


def _ladder(config: Config) -> str:
    a = config.algorithm
    kinds = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

    def row(steps: str, rung: str, times: str, s: SamplingParams) -> tuple[str, ...]:
        after = "-" if s.answer is None else ", ".join(f"{kind} {getattr(s.answer, kind):g}" for kind in kinds)
        return (steps, rung, times, *(f"{getattr(s, kind):g}" for kind in kinds), after)

    def climbed(trigger: TriggerSettings) -> Iterator[tuple[str, ...]]:
        if not trigger.rungs:
            yield (f"from {trigger.from_step}", "no resamples", *("-" for _ in range(7)))
        for place, rung in enumerate(trigger.rungs, start=1):
            yield row(f"from {trigger.from_step}", str(place), str(rung.times), rung.params)

    rows = [row("all", "first attempt", "1", a.sampling)]
    if a.name == "adagrpo":
        rows += [line for trigger in a.triggers for line in climbed(trigger)]
    return _table(("steps", "rung", "times", *(kind.replace("_", " ") for kind in kinds), "after the thought"), rows)


def _compared(before: float | None, after: float | None) -> tuple[str, str, str]:
    return number(before), number(after), change(before, after)


def _at(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for name in key.split("."):
        value = value[name]
    return value


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)
