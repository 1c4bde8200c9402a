"""The sections of a model card, each a piece of Markdown that ends with a newline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from adagrpo_ray.config.algorithm import TriggerSettings
from adagrpo_ray.config.reasoning_gym import REASONING_GYM
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.arithmetic import ARITHMETIC
from adagrpo_ray.data.chat import system_message
from adagrpo_ray.data.source import is_generated, is_hub_name
from adagrpo_ray.model.identity import TINY, ModelIdentity
from adagrpo_ray.observe.figures import change, few, levels, number, rungs, shown, whole
from adagrpo_ray.observe.markdown import cell, literal
from adagrpo_ray.observe.records import Summary
from adagrpo_ray.types import SamplingParams

METHODS = {"adagrpo": "adaptive GRPO", "grpo": "GRPO", "dapo": "DAPO's dynamic sampling"}
SHOWN = (
    *("algorithm.name", "run.steps", "run.seed", "algorithm.prompts_per_step", "algorithm.group_size"),
    *("algorithm.criterion.kind", "algorithm.criterion.threshold", "algorithm.resample", "algorithm.on_exhausted"),
    *("algorithm.train_on", "algorithm.allocation.enabled", "algorithm.budget", "algorithm.max_staleness"),
    *("algorithm.loss.kind", "algorithm.loss.epsilon", "algorithm.loss.epsilon_high", "algorithm.loss.beta"),
    *("algorithm.loss.correction", "algorithm.loss.correction_mode", "algorithm.loss.correction_floor"),
    *("algorithm.loss.correction_cap", "algorithm.loss.entropy_coef", "algorithm.loss.mask_truncated_completions"),
    "algorithm.overlong_buffer",
    *("learner.learning_rate", "learner.schedule", "learner.warmup", "learner.weight_decay", "learner.gradient_clip"),
    *("model.lora.r", "model.lora.alpha", "model.lora.dropout", "model.lora.targets", "model.dtype"),
    *("rollout.max_new_tokens", "rewards.correct_by", "rewards.correct_above"),
)
"""Settings in the card's table; all of them follow as YAML."""
ADAPTIVE = ("algorithm.criterion.", "algorithm.resample", "algorithm.on_exhausted", "algorithm.allocation.")
"""Beginnings of the keys that count for adaptive GRPO alone."""


def base_in_words(base: ModelIdentity) -> str:
    """The base model in a sentence."""
    if base.on_hub:
        return f"[{base.name}](https://huggingface.co/{base.name})"
    if base.name == TINY:
        return "the tiny Qwen3 base model that adagrpo_ray trains on first use"
    return f"the model {_code(PurePath(base.name).name)}"


def data_in_words(config: Config) -> str:
    """The data in a sentence."""
    source = config.data.source
    if source == ARITHMETIC:
        return "generated additions of two numbers"
    if source == REASONING_GYM:
        return "generated problems of [reasoning-gym](https://github.com/open-thought/reasoning-gym)"
    if not is_hub_name(source):
        return _code(source_name(source))
    return f"[{source}](https://huggingface.co/datasets/{source})"


def source_name(source: str) -> str:
    """A name on the Hub as it is; of a file or folder its own name, without the folders of the machine."""
    return source if is_generated(source) or is_hub_name(source) else PurePath(source).name


def use_adapter(config: Config, base: ModelIdentity) -> str:
    """How to load the adapter with PEFT and with vLLM."""
    place, kwargs = "path/to/the/base/model", config.data.template_kwargs
    if base.on_hub:
        place = base.name
    loading = f"base = {json.dumps(place)}\n"
    revision = f", revision={json.dumps(base.revision)}" if base.on_hub and base.revision else ""
    if base.name == TINY:
        loading = (
            "from adagrpo_ray.config import load_config\n"
            "from adagrpo_ray.model.load import resolve_model\n\n"
            'base = resolve_model(load_config("config.yaml"))  # that of the run folder; builds the model if need be\n'
        )
    peft = (
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"{loading}"
        f"tokenizer = AutoTokenizer.from_pretrained(base{revision})\n"
        f"model = AutoModelForCausalLM.from_pretrained(base{revision}, dtype=torch.{config.model.dtype})\n"
        'model = PeftModel.from_pretrained(model, "path/to/this/adapter")\n\n'
        f"messages = {_messages(config)}\n"
        'prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
        f"return_dict=True{f', **{kwargs!r}' if kwargs else ''})\n"
        f"output = model.generate(**prompt, max_new_tokens={config.rollout.max_new_tokens})\n"
        'print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )
    vllm = (
        "from vllm import LLM, SamplingParams\n"
        "from vllm.lora.request import LoRARequest\n\n"
        f"llm = LLM(base{revision}, enable_lora=True, max_lora_rank={config.model.lora.r})\n"
        f"sampling = SamplingParams(temperature=0.0, max_tokens={config.rollout.max_new_tokens})\n"
        'adapter = LoRARequest("adapter", 1, "path/to/this/adapter")\n'
        f"print(llm.chat(messages, sampling, lora_request=adapter"
        f"{f', chat_template_kwargs={kwargs!r}' if kwargs else ''})[0].outputs[0].text)\n"
    )
    return f"## Use\n\nWith PEFT:\n\n{_fenced(peft, 'python')}\nWith vLLM:\n\n{_fenced(vllm, 'python')}"


def use_model() -> str:
    """How to load a merged model with Transformers and with vLLM."""
    transformers = (
        "from transformers import pipeline\n\n"
        'generate = pipeline("text-generation", model="path/to/this/model")\n'
        'messages = [{"role": "user", "content": "..."}]  # with the system message below, if there is one\n'
        "print(generate(messages)[0]['generated_text'][-1]['content'])\n"
    )
    vllm = (
        "from vllm import LLM, SamplingParams\n\n"
        'llm = LLM("path/to/this/model")\n'
        "print(llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=512))[0].outputs[0].text)\n"
    )
    return f"## Use\n\nWith Transformers:\n\n{_fenced(transformers, 'python')}\nWith vLLM:\n\n{_fenced(vllm, 'python')}"


def answer_format(config: Config) -> str:
    """The system prompt that it was trained with, and where its answer stands."""
    system, markers = system_message(config.data), config.data.format
    said = "It was trained with the chat template of its base model"
    if config.data.template_kwargs:
        said += f", its arguments {_code(json.dumps(config.data.template_kwargs, ensure_ascii=False))},"
    asked = (
        " and no system message of its own.\n" if system is None else f" and this system message:\n\n{_fenced(system)}"
    )
    return (
        f"## Prompt and answer\n\n{said}{asked}\n"
        f"A completion thinks until {_code(markers.think_end)}; its answer is what stands between "
        f"{_code(markers.answer_start)} and {_code(markers.answer_end)}.\n"
    )


def base_model(base: ModelIdentity, adapter: str | None = None) -> str:
    """Which base model it needs, and the `adapter` that its training continued."""
    rows = [
        ("base model", base_in_words(base)),
        ("revision", _code(base.revision) if base.revision else "not known" if base.on_hub else "-"),
        ("fingerprint of its weights", _code(base.fingerprint) if base.fingerprint else "not known"),
        ("licence", base.license or "not known here: see the base model's own card"),
    ]
    if adapter is not None:
        rows.append(("continues the adapter", _code("/".join(PurePath(adapter).parts[-2:]))))
    return "## Base model\n\n" + _table(("", ""), rows)


def data(config: Config, prompts: tuple[int, int] | None) -> str:
    """What it was trained and measured on, and what counted as right."""
    d, rewards = config.data, config.rewards
    rows = [("data", data_in_words(config))]
    if d.source == ARITHMETIC:
        rows.append(("classes", "digits of the summands: " + ", ".join(map(str, config.arithmetic.keep_carry))))
    elif d.source == REASONING_GYM:
        rows += [
            (f"task {literal(task.name)}", f"weight {task.weight:g}, {_code(json.dumps(task.config, sort_keys=True))}")
            for task in config.reasoning_gym.tasks
        ]
    elif is_hub_name(d.source):
        rows.append(("subset, split", f"{d.subset or '-'}, {d.split}"))
    if prompts is not None:
        rows += [("prompts trained on", str(prompts[0])), ("prompts held out", str(prompts[1]))]
    rows += [(f"reward: {literal(shown(r.function))}", f"weight {r.weight:g}") for r in rewards.functions]
    right = rewards.correct_by or rewards.functions[-1].function
    rows.append(("a completion is right", f"where {literal(shown(right))} is above {rewards.correct_above:g}"))
    return "## Data and rewards\n\n" + _table(("", ""), rows)


def training(config: Config) -> str:
    """The algorithm's settings, and its ladder of resamples."""
    tree = config.model_dump(mode="json")
    adaptive = config.algorithm.name == "adagrpo"
    rows = [
        (_code(key), _value(value))
        for key in SHOWN
        if (value := _at(tree, key)) is not None and (adaptive or not key.startswith(ADAPTIVE))
    ]
    rows.append((_code("algorithm.updates"), str(config.algorithm.updates_per_batch)))
    text = f"## Training\n\nBy {METHODS[config.algorithm.name]}, with these settings:\n\n" + _table(
        ("setting", "value"), rows
    )
    return text + "\n### Sampling, and the ladder of resamples\n\n" + _ladder(config)


def results(config: Config, summary: Summary) -> str:
    """Held-out accuracy before and after, what resampling cost and brought, tokens."""
    e = config.evaluation
    if summary.accuracy_before is None and summary.accuracy_after is None:
        measured = "Held-out accuracy was not measured.\n"
    else:
        named, others = few(levels([*summary.accuracy_by_level_before, *summary.accuracy_by_level_after]))
        before, after = summary.accuracy_by_level_before, summary.accuracy_by_level_after
        rows = [("all", *_compared(summary.accuracy_before, summary.accuracy_after), str(sum(summary.resamples)))] + [
            (
                literal(shown(name)),
                *_compared(before.get(name), after.get(name)),
                str(summary.resamples_by_level.get(name, 0)),
            )
            for name in named
        ]
        rows += [(others, "", "", "", "")] if others else []
        measured = (
            f"Share of right completions on held-out prompts, {e.samples} for each at temperature "
            f"{e.sampling.temperature:g}.\n\n" + _table(("class", "before", "after", "change", "resamples"), rows)
        )
    cost = _table(
        ("", ""),
        [
            ("steps", f"{summary.steps} in {summary.seconds:,.0f} s"),
            ("tokens generated", f"{summary.generated_tokens:,}, of which {summary.extra_tokens:,} by resamples"),
            ("tokens trained on", f"{summary.trained_tokens:,}"),
            ("tokens for each group with spread", whole(summary.tokens_per_informative_group)),
            ("resamples by rung", rungs(summary.resamples)),
            ("of these met the criterion", rungs(summary.rescued)),
            ("groups that never did", str(summary.groups_exhausted)),
            ("groups that could not be scored", str(summary.groups_failed)),
            ("updates skipped", str(summary.skipped_updates)),
        ],
    )
    return f"## Results\n\n{measured}\n{cost}"


def made(command: str | None, versions: Mapping[str, str], config: str) -> str:
    """The command, the packages, and all settings."""
    text = "## How it was made\n\n"
    text += f"{_fenced(command, 'bash')}\n" if command else ""
    text += f"{_table(('package', 'version'), list(versions.items()))}\n" if versions else ""
    return f"{text}<details><summary>All settings</summary>\n\n{_fenced(config, 'yaml')}\n</details>\n"


def merging(base: ModelIdentity, dtype: str, check: str | None) -> str:
    """How the adapter came into the weights."""
    compared = f"Compared with the adapter on its base model: {check}.\n" if check else "It was not checked.\n"
    return (
        f"## Merge\n\nThe adapter was added to the untouched weights of {base_in_words(base)} in float32, and the sum "
        f"kept in {dtype}. {compared}"
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
            yield row(f"from {trigger.from_step}", str(place), str(rung.times), rung.params())

    rows = [row("all", "first attempt", "1", a.sampling.params())]
    if a.name == "adagrpo":
        rows += [line for trigger in a.triggers for line in climbed(trigger)]
    return _table(("steps", "rung", "times", *(kind.replace("_", " ") for kind in kinds), "after the thought"), rows)


def _compared(before: float | None, after: float | None) -> tuple[str, str, str]:
    return number(before), number(after), change(before, after)


def _messages(config: Config) -> str:
    system = system_message(config.data)
    head = "" if system is None else f'{{"role": "system", "content": {json.dumps(system, ensure_ascii=False)}}}, '
    question = "123+456" if config.data.source == ARITHMETIC else "..."
    return f'[{head}{{"role": "user", "content": "{question}"}}]'


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


def _code(text: str) -> str:
    """`text` in a line as it is, whatever it holds: between more backquotes than stand together in it."""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{ticks}{space}{' '.join(text.split())}{space}{ticks}"


def _fenced(text: str, language: str = "text") -> str:
    """`text` as a block of code, whatever it holds."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}\n"
