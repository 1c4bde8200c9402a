"""Finds the base model of an adapter: the same weights that it was trained on, in a local folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from adagrpo_ray.cards.card import OURS
from adagrpo_ray.config import Config
from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.model.folder import check_model_folder, read_json
from adagrpo_ray.model.gguf_file import is_gguf
from adagrpo_ray.model.gguf_model import dequantised
from adagrpo_ray.model.identity import TINY, ModelIdentity, front_matter, identify
from adagrpo_ray.model.quantised import check_unquantised

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*", "README.md")
"""The files that are downloaded of a model on the Hub: no pickles, and no code."""


def find_base(option: str | None, config: Config | None, named: str, card: str | None) -> tuple[ModelIdentity, Path]:
    """Find the base model and its folder.

    option: the value of --base; it comes first.
    config: the settings of the run, whose base model comes next.
    named: the base model that the adapter's configuration names.
    card: the adapter's model card.

    Raises ModelError if there is no such model, it is quantised, or the card has the fingerprint of other weights.
    """
    noted = front_matter(card).get(OURS) if card is not None else None
    noted = noted if isinstance(noted, dict) else {}
    if option is not None:
        name, setting = option, "--base"
    elif config is not None:
        name, setting = config.model.path, "model.path"
    else:
        name, setting = named, "base_model_name_or_path"
    path = _folder(name, setting, config, noted.get("base_revision"))
    content = read_json(setting, path / "config.json")
    check_unquantised(str(path), content, f"the base model {setting}={name!r}", "a merge adds to its weights")
    base = identify(name, str(path))
    expected = noted.get("base_fingerprint")
    if expected is not None and base.fingerprint != expected:
        raise ModelError(
            f"{setting}={name!r} is not the model that the adapter was trained on (its weights have the fingerprint "
            f"{base.fingerprint}, the adapter's card has {expected}); give that one as --base"
        )
    return base, path


def _folder(name: str, setting: str, config: Config | None, revision: Any) -> Path:
    if name == TINY:
        from adagrpo_ray.toy.tiny import build_tiny_model

        config = config or Config()
        return build_tiny_model(config.arithmetic, config.data.format)
    if is_gguf(name):
        return dequantised(name, setting)
    if os.path.isdir(name):
        check_model_folder(name, setting)
        return Path(name)
    if not name or os.path.isabs(name) or name.startswith(".") or name.count("/") > 1:
        raise ModelError(f"the base model {setting}={name!r} is no folder here; give its folder or Hub name as --base")
    return _from_hub(name, setting, revision if isinstance(revision, str) else None)


def _from_hub(name: str, setting: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # errors of the network, the Hub or the name have no common class
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            raise ModelError(
                f"the base model {setting}={name!r} is neither a folder here nor available on the Hub "
                f"({first_line(error)}); give its folder or Hub name as --base"
            ) from None
        folder = Path(cached).parent  # the files that training used, without licence and card
    check_model_folder(str(folder), setting)
    return folder
