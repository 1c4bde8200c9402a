"""Messages for the errors of pydantic: the key, its value, and the remedy."""

from __future__ import annotations

import difflib
import reprlib
from typing import Any

from pydantic import BaseModel

from adagrpo_ray.config.secrets import SECRET, hidden, holds_secret, names_secret
from adagrpo_ray.config.section import section_of
from adagrpo_ray.config.typed import Misfit

RENAMED = {
    "algorithm.updates": "algorithm.num_iterations",
    "checkpoint.keep_last": "checkpoint.save_total_limit",
    "data.columns.answer": "data.columns.ground_truth",
    "data.columns.level": "data.columns.difficulty",
    "data.held_out_prompts": "data.eval_prompts",
    "learner.gradient_clip": "learner.max_grad_norm",
    "learner.layout": "learner.packing",
    "learner.warmup": "learner.warmup_ratio",
    "reasoning_gym.tasks.level": "reasoning_gym.tasks.difficulty",
    "rollout.eager": "rollout.enforce_eager",
    "rollout.gpu_memory_share": "rollout.gpu_memory_utilization",
    "rollout.max_sequences": "rollout.max_num_seqs",
    "rollout.sync": "rollout.lora_mode",
    "rollout.tensor_parallel": "rollout.tensor_parallel_size",
    "run.folder": "run.output_dir",
}
"""New names of renamed settings, by their old names."""


_REPR = reprlib.Repr()  # of any value, however long, deep or full of aliases
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxlevel = 4


def shown(value: object) -> str:
    """Return `value` as Python writes it, cut to a readable length, without secrets."""
    text = _REPR.repr(value)
    return "***" if holds_secret(value if isinstance(value, str) else text) else hidden(text)


def explain(error: Any, root: type[BaseModel]) -> str:
    """Return one line for an error of pydantic in the settings `root`: key, value and remedy; secrets are hidden."""
    place, value = tuple(error["loc"]), error["input"]
    key = ".".join(str(part).strip("'") for part in place if part != "[key]")
    if (new := RENAMED.get(".".join(str(part) for part in place if not isinstance(part, int)))) is not None:
        return f"{key} (value {shown(value)}) is called {new} now; rename it"
    if error["type"] == SECRET:
        return f"{key} {error['msg']}"
    if error["type"] == "extra_forbidden":
        valid = _valid_names(place[:-1], root)
        near = difflib.get_close_matches(str(place[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*map(str, place[:-1]), near[0]])!r}?" if near else f"valid: {', '.join(valid)}"
        value_shown = "***" if names_secret(str(place[-1])) else shown(value)
        return f"unknown key {key!r} (value {value_shown}); {hint}"
    value = list(value) if isinstance(value, tuple) else value
    message: str = error["msg"].removeprefix("Value error, ").replace("Tuple should", "input should be a list that")
    message = message.replace("a list that have", "a list that has").replace(" after validation", "")
    message = message[:1].lower() + message[1:]
    if not place:
        return message
    if error["type"] == "missing":
        return f"{key} is missing; set it"
    if error["type"] == "literal_error":
        words = error["ctx"]["expected"].replace(" or ", ", ").split(", ")  # "'a', 'b' or 'c'"
        near = difflib.get_close_matches(value if isinstance(value, str) else "", [w.strip("'") for w in words], n=1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    if error["type"] in ("model_type", "model_attributes_type"):
        message = f"input should be a valid dictionary: {key} is a section, write its keys as {key}.KEY=VALUE"
    elif isinstance(value, Misfit) and error["type"] != "literal_error":
        message = value.why
    return f"{key}={shown(value)}: {message}"


def _valid_names(place: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    """Return the names of the settings in the section at `place`."""
    section = root
    for part in place:
        if isinstance(part, str) and part in section.model_fields:
            section = section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)
