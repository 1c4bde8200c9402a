"""The identity of a base model: its name, its revision on the Hub, and a fingerprint of its weights."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.folder import INDEX, WEIGHTS, read_json
from adagrpo_ray.model.gguf_file import is_gguf
from adagrpo_ray.model.gguf_model import Origin, read_origin

TINY = "tiny"
SAMPLE_BYTES = 1024
"""Bytes that are read at the start, the middle and the end of each tensor."""
LONGEST_HEADER = 100_000_000
"""Most bytes of the header of a safetensors file, as in its specification."""


@dataclass(frozen=True)
class ModelIdentity:
    """A base model. Unknown fields are None.

    `name` is its name in the settings: 'tiny', a folder, a GGUF file, or a name on the Hub (`on_hub`). `revision` is
    the commit there, `fingerprint` the result of the function `fingerprint` for its weights, and `gguf` the file from
    which the weights were made.
    """

    name: str
    on_hub: bool = False
    revision: str | None = None
    fingerprint: str | None = None
    license: str | None = None
    gguf: Origin | None = None


def identify(name: str, path: str) -> ModelIdentity:
    """Return the identity of the base model that the settings call `name`.

    `path` is its folder or its name on the Hub; for a GGUF file it is the folder of the dequantised weights. No server
    is contacted: a model on the Hub is read from this machine's cache.
    """
    folder, on_hub = Path(path), name != TINY and not os.path.isdir(name) and not is_gguf(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(path, "config.json")
        if not isinstance(cached, str):
            return ModelIdentity(name, on_hub)
        folder = Path(cached).parent
    revision = folder.name if on_hub else None  # a snapshot in the Hub's cache is named by its commit
    origin = read_origin(folder) if is_gguf(name) else None
    license = "mit" if name == TINY else origin.license if origin is not None else _license(folder)
    return ModelIdentity(name, on_hub, revision, _fingerprint_or_none(folder), license, origin)


def fingerprint(folder: Path) -> str:
    """Return 32 hex digits for the weights in `folder`. They do not depend on the division into *.safetensors files.

    They are a hash of name, type, shape and some bytes of each tensor, which is fast. They identify a model, but are no
    proof against forgery. Raises ModelError if a file cannot be read or is missing.
    """
    known, tensors = hashlib.sha256(), _tensors(folder)
    index = folder / INDEX
    named = {} if (folder / WEIGHTS).is_file() or not index.is_file() else read_json("weights", index)["weight_map"]
    if not tensors or not set(named) <= set(tensors):  # for example in a cache during a download
        raise ModelError(f"{folder} does not hold all weights of a model; copy the whole folder again")
    for name, (file, offset, entry) in sorted(tensors.items()):
        known.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        begin, end = (offset + place for place in entry["data_offsets"])
        with file.open("rb") as content:
            for place in (begin, (begin + end) // 2, max(begin, end - SAMPLE_BYTES)):
                content.seek(place)
                known.update(content.read(min(SAMPLE_BYTES, end - place)))
    return known.hexdigest()[:32]


def _tensors(folder: Path) -> dict[str, tuple[Path, int, dict[str, Any]]]:
    """Return the file of each tensor, the offset of the data in that file, and the tensor's entry in the header."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as content:
                size = int.from_bytes(content.read(8), "little")
                header = json.loads(content.read(min(size, LONGEST_HEADER)))
            found.update({name: (file, 8 + size, entry) for name, entry in header.items() if name != "__metadata__"})
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{file} is no safetensors file that can be read ({error}); copy it again") from None
    return found


def _fingerprint_or_none(folder: Path) -> str | None:
    try:
        return fingerprint(folder)
    except (ModelError, OSError, KeyError, TypeError, ValueError):
        return None


def _license(folder: Path) -> str | None:
    """Return the license in the front matter of the model's own card; None if there is none."""
    try:
        license = front_matter((folder / "README.md").read_text(encoding="utf-8")).get("license")
    except (OSError, UnicodeDecodeError):
        return None
    return license if isinstance(license, str) else None


def front_matter(card: str) -> dict[str, Any]:
    """Return the YAML at the head of a model card; {} if there is none or it cannot be read."""
    head, _, rest = card.partition("\n")
    body, closing, _ = f"\n{rest}".partition("\n---\n")
    try:
        found = yaml.safe_load(body) if head.strip() == "---" and closing else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
