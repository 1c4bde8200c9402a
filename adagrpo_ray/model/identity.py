"""Which base model it was: its name, its revision on the Hub, and a fingerprint of its weights."""

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
"""Read at the start, the middle and the end of each tensor."""
LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors file's header, as the format has it."""


@dataclass(frozen=True)
class ModelIdentity:
    """A base model; what is not known of it is None.

    `name` is what the settings call it: 'tiny', a folder, a GGUF file, or a name on the Hub (`on_hub`). `revision` is
    the commit there, `fingerprint` what `fingerprint` says of its weights, and `gguf` the file that they were made of.
    """

    name: str
    on_hub: bool = False
    revision: str | None = None
    fingerprint: str | None = None
    license: str | None = None
    gguf: Origin | None = None


def identify(name: str, path: str) -> ModelIdentity:
    """The base model that the settings call `name` and that lies at `path`: a folder, or a name on the Hub.

    A GGUF file lies where it was dequantised to. Asks nobody: of a model on the Hub it knows what this machine's
    cache holds.
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
    """32 hex digits for the weights in `folder`, however they are spread over *.safetensors files.

    They go by name, type, shape and some bytes of each tensor: enough to tell another model, in no time, and no proof
    against forgery. Raises ModelError where a file cannot be read, or some are not there.
    """
    known, tensors = hashlib.sha256(), _tensors(folder)
    index = folder / INDEX
    named = {} if (folder / WEIGHTS).is_file() or not index.is_file() else read_json("weights", index)["weight_map"]
    if not tensors or not set(named) <= set(tensors):  # as in a cache that weights are still coming to
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
    """Each tensor's file, where that file's data begin, and its entry in the header."""
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
    """What the front matter of the model's own card says."""
    try:
        said = front_matter((folder / "README.md").read_text(encoding="utf-8")).get("license")
    except (OSError, UnicodeDecodeError):
        return None
    return said if isinstance(said, str) else None


def front_matter(card: str) -> dict[str, Any]:
    """The YAML at the head of a model card; {} where there is none that can be read."""
    head, _, rest = card.partition("\n")
    body, closing, _ = f"\n{rest}".partition("\n---\n")
    try:
        found = yaml.safe_load(body) if head.strip() == "---" and closing else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
