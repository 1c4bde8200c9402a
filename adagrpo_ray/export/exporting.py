"""Exports an adapter to a folder with the merged model, which is complete and checked, or not created at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from adagrpo_ray.cards.card import CARD, Facts, Merge, adapter_card, merged_card
from adagrpo_ray.config.data import PLAIN
from adagrpo_ray.data.template_choice import TEMPLATE_FILE, use_template
from adagrpo_ray.errors import AdaGRPOError, ConfigError, ModelError, ResourceError, first_line
from adagrpo_ray.export import merge
from adagrpo_ray.export.adapter_source import Source, opened
from adagrpo_ray.export.base import find_base
from adagrpo_ray.export.check import check_bytes, compare
from adagrpo_ray.model.folder import ADAPTER_CONFIG, INDEX, read_json
from adagrpo_ray.model.gguf_model import ORIGIN
from adagrpo_ray.model.identity import ModelIdentity

COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
"""Files that are copied from the base model's folder: tokenizer, chat template, generation settings, licence; no code.
"""
LEFT = ("config.json", INDEX, ADAPTER_CONFIG, ORIGIN)
PROMPTS, NEW_TOKENS, LONGEST_PROMPT = 4, 32, 1024
"""Number of prompts of the check, tokens generated after each, and largest length of a prompt in tokens."""
QUESTIONS = ("What is 17 + 25?", "Name three primes.", "Write one sentence about rain.", "Is 91 a prime number? Why?")
"""Prompts of the check if the data of the run are not available."""

Notify = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """A requested export.

    place: the adapter, as in `opened`.
    out: the folder to create.
    base: the value of --base, as in `find_base`.
    dtype: the type of the merged weights; None for that of the base model.
    check: whether to compare the result with the adapter.
    """

    place: str
    out: Path
    base: str | None = None
    dtype: str | None = None
    check: bool = True


def export(request: ExportRequest, notify: Notify) -> Path:
    """Merge the adapter into its base model, as a folder that Transformers and vLLM load. Returns the folder.

    The folder is written under another name, checked, and renamed: if a step fails, nothing is left. `notify` receives
    sizes and the results of the check. Raises ModelError if the adapter or the base cannot be used or the check fails,
    ConfigError if the folder exists, and ResourceError if disk or memory do not suffice.
    """
    out = Path(request.out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out={str(request.out)!r} exists already; choose another folder, or move it away")
    with opened(request.place) as source:
        base, folder = find_base(request.base, source.config, source.adapter.base, source.card)
        planned = merge.plan(folder, source.adapter, request.dtype)
        notify(
            f"merging {len(planned.pairs)} weights of {source.name} into {base.name}: {_gib(planned.bytes)} of "
            f"{planned.dtype} in {len(planned.shards)} file{'s'[: len(planned.shards) > 1]}; takes about "
            f"{_gib(planned.peak_bytes)} of memory"
            + (f", the check {_gib(check_bytes(planned.numbers))}" if request.check else "")
        )
        _check_room(out, planned, check=request.check)
        with _aside(out) as part:
            _copy(folder, part, request.dtype)
            _keep_template(source, part)
            merge.write(planned, part)
            checked = None
            if request.check:
                checked = _checked(folder, source, part, planned, notify)
            card = source.card if source.card is not None else _card(source, base)
            text = merged_card(card, source.name, base, Merge(planned.dtype, checked, source.template == ""))
            (part / CARD).write_text(text, encoding="utf-8", errors="replace")
    return out


def _checked(base: Path, source: Source, merged: Path, planned: merge.Merge, notify: Notify) -> str:
    """Check the merged model; the results in words. Raises ModelError if the check fails."""
    prompts, origin = _prompts(merged, source)
    notify(f"comparing it with the adapter on {len(prompts)} prompts of {origin}")
    comparison = compare(base, source.adapter.folder, merged, planned, prompts, NEW_TOKENS)
    if comparison.problem is not None:
        raise ModelError(f"the merged model differs from the adapter, nothing is saved: {comparison.problem}")
    notify(str(comparison))
    if comparison.warning is not None:
        notify(f"warning: {comparison.warning}")
    return str(comparison)


def _prompts(merged: Path, source: Source) -> tuple[list[NDArray[np.int32]], str]:
    """Prompts in tokens of the merged model's tokenizer, and their origin: the run's data if they are available."""
    from transformers import AutoTokenizer

    from adagrpo_ray.data.prompts import load_prompts

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(merged))
    except Exception as error:  # Transformers raises various errors for invalid files
        raise ModelError(
            f"the base model has no tokenizer that can be used ({first_line(error)}); add it there"
        ) from None
    config = source.config
    use_template(tokenizer, source.template)
    if config is not None and (tokenizer.chat_template is not None or config.data.chat_template == PLAIN):
        try:
            sets = load_prompts(config, tokenizer, training=False)
        except AdaGRPOError:
            pass  # the data are on another machine, or on the Hub and there is no network
        else:
            found = [p.token_ids for p in (*sets.held_out, *sets.train) if len(p.token_ids) <= LONGEST_PROMPT]
            if found:
                return found[:: max(1, len(found) // PROMPTS)][:PROMPTS], config.data.source
    kwargs = config.data.template_kwargs if config is not None else {}
    questions = [_tokens(question, tokenizer, kwargs) for question in QUESTIONS]
    return questions, "its own, since the run's data are not available"


def _tokens(question: str, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> NDArray[np.int32]:
    text = question
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **template_kwargs)
    return np.asarray(tokenizer.encode(text, add_special_tokens=tokenizer.chat_template is None), np.int32)


def _card(source: Source, base: ModelIdentity) -> str | None:
    if source.config is None or source.summary is None:
        return None
    return adapter_card(Facts(source.config, base, source.summary, template=source.template))


def _copy(base: Path, out: Path, dtype: str | None) -> None:
    """Copy the base model's files without its weights; set the type in config.json to `dtype` if it is given."""
    for pattern in COPIED:
        for file in base.glob(pattern):
            if file.is_file() and file.name not in LEFT:
                shutil.copyfile(file, out / file.name)
    config = read_json("the base model", base / "config.json")
    if dtype is not None:
        config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
        config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _keep_template(source: Source, out: Path) -> None:
    """Write the chat template of training; its file takes precedence over the base model's template."""
    if source.template:
        (out / TEMPLATE_FILE).write_text(source.template, encoding="utf-8")


def _check_room(out: Path, planned: merge.Merge, *, check: bool) -> None:
    """Raise ResourceError if disk or memory do not suffice."""
    import psutil

    parent = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < planned.bytes:
        raise ResourceError(
            f"--out={str(out)!r} takes {_gib(planned.bytes)}, {parent} has {_gib(free)} free; make room"
        )
    memory = psutil.virtual_memory().available
    if memory < planned.peak_bytes:
        raise ResourceError(f"merging takes {_gib(planned.peak_bytes)} of memory, {_gib(memory)} are free; make room")
    if check and memory < check_bytes(planned.numbers):
        raise ResourceError(
            f"the check loads the model in float32, {_gib(check_bytes(planned.numbers))}, and {_gib(memory)} of memory "
            "are free; make room, or leave the check out with --no-check"
        )


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder that is renamed to `out` at the end of the block, and removed if the block fails."""
    part = out.with_name(f"{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # left by an export that was killed
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except (OSError, SafetensorError) as error:  # safetensors raises its own error for a full disk
        raise ResourceError(f"cannot write {out} ({_why(error)}); free or unlock that place") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**24 else f"{size / 2**20:.1f} MiB"
