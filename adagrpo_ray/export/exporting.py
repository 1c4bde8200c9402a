"""An export from its adapter to a folder that is whole and checked, or not there."""

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
"""What goes along from the base model's folder: tokenizer, chat template, generation settings, licence; no code."""
LEFT = ("config.json", INDEX, ADAPTER_CONFIG, ORIGIN)
PROMPTS, NEW_TOKENS, LONGEST_PROMPT = 4, 32, 1024
"""What the check looks at: so many prompts, not longer than that, and so many tokens after each."""
QUESTIONS = ("What is 17 + 25?", "Name three primes.", "Write one sentence about rain.", "Is 91 a prime number? Why?")
"""Asked where the data of the run are not at hand."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """What to export: `place` as in `opened`, `base` as in `find_base`; `out` is the folder to make.

    `dtype` of the weights, None: as the base has them.
    """

    place: str
    out: Path
    base: str | None = None
    dtype: str | None = None
    check: bool = True


def export(request: ExportRequest, tell: Tell) -> Path:
    """Merge the adapter into its base model, a folder that Transformers and vLLM load; the folder.

    It is written aside, compared with the adapter, and renamed: where anything fails nothing is left. `tell` hears
    sizes and the check's figures. Raises ModelError for an adapter or a base that cannot be used and where the check
    fails, ConfigError where the folder is taken, ResourceError where there is no room.
    """
    out = Path(request.out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out={str(request.out)!r} is there already; choose another folder, or move it away")
    with opened(request.place) as source:
        base, folder = find_base(request.base, source.config, source.adapter.base, source.card)
        planned = merge.plan(folder, source.adapter, request.dtype)
        tell(
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
                checked = _checked(folder, source, part, planned, tell)
            card = source.card if source.card is not None else _card(source, base)
            text = merged_card(card, source.name, base, Merge(planned.dtype, checked, source.template == ""))
            (part / CARD).write_text(text, encoding="utf-8", errors="replace")
    return out


def _checked(base: Path, source: Source, merged: Path, planned: merge.Merge, tell: Tell) -> str:
    """The check's figures in words; ModelError where it fails."""
    prompts, of = _prompts(merged, source)
    tell(f"comparing it with the adapter on {len(prompts)} prompts of {of}")
    comparison = compare(base, source.adapter.folder, merged, planned, prompts, NEW_TOKENS)
    if comparison.problem is not None:
        raise ModelError(f"the merged model does not say what the adapter says, nothing is kept: {comparison.problem}")
    tell(str(comparison))
    if comparison.warning is not None:
        tell(f"warning: {comparison.warning}")
    return str(comparison)


def _prompts(merged: Path, source: Source) -> tuple[list[NDArray[np.int32]], str]:
    """Some prompts by the merged model's own tokenizer, and whose they are: the run's data, where these are here."""
    from transformers import AutoTokenizer

    from adagrpo_ray.data.prompts import load_prompts

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(merged))
    except Exception as error:  # what a file holds makes Transformers fail in any way
        raise ModelError(
            f"the base model has no tokenizer that can be used ({first_line(error)}); add it there"
        ) from None
    config = source.config
    use_template(tokenizer, source.template)
    if config is not None and (tokenizer.chat_template is not None or config.data.chat_template == PLAIN):
        try:
            sets = load_prompts(config, tokenizer, training=False)
        except AdaGRPOError:
            pass  # of another machine, or of the Hub without a network
        else:
            found = [p.token_ids for p in (*sets.held_out, *sets.train) if len(p.token_ids) <= LONGEST_PROMPT]
            if found:
                return found[:: max(1, len(found) // PROMPTS)][:PROMPTS], config.data.source
    kwargs = config.data.template_kwargs if config is not None else {}
    return [
        _asked(question, tokenizer, kwargs) for question in QUESTIONS
    ], "its own, since the run's data are not at hand"


def _asked(question: str, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> NDArray[np.int32]:
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
    """All of the base model but its weights, with the config's type changed where that of the weights is."""
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
    """Give the model the template that it was trained with; a file of that name goes before the base model's own."""
    if source.template:
        (out / TEMPLATE_FILE).write_text(source.template, encoding="utf-8")


def _check_room(out: Path, planned: merge.Merge, *, check: bool) -> None:
    """ResourceError where the disk or the memory cannot hold it."""
    import psutil

    there = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < planned.bytes:
        raise ResourceError(f"--out={str(out)!r} takes {_gib(planned.bytes)}, {there} has {_gib(free)} free; make room")
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
    """A folder that becomes `out` at the end of the block, and is gone where the block fails."""
    part = out.with_name(f"{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # left by an export that was killed
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk, too
        raise ResourceError(f"cannot write {out} ({_why(error)}); free or unlock that place") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**24 else f"{size / 2**20:.1f} MiB"
