"""A folder to a model repository of the Hub, in one commit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import ConfigError, ModelError, ResourceError, first_line

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
PUSHED = ("*.safetensors", "*.json", "*.md", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
"""What goes to the Hub of a folder: no pickles, no code, nothing hidden."""


@dataclass(frozen=True)
class Push:
    """What would go where: `files` with their sizes in bytes, `left` stays here."""

    repository: str
    private: bool
    folder: Path
    files: tuple[tuple[str, int], ...]
    left: tuple[str, ...]


def check_name(repository: str) -> None:
    """ConfigError unless `repository` can be the name of a repository, OWNER/NAME."""
    if not _NAME.fullmatch(repository) or "--" in repository or ".." in repository:
        raise ConfigError(f"--push={repository!r} is no name of a repository; write OWNER/NAME, as in my-name/my-model")


def plan_push(folder: Path, repository: str, *, private: bool) -> Push:
    """What pushing the model or adapter in `folder` to OWNER/NAME would do. Asks nobody.

    Raises ConfigError for another kind of name, ModelError where the folder holds no model or no card.
    """
    check_name(repository)
    there = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    chosen = [path for path in there if not path.name.startswith(".") and any(path.match(kind) for kind in PUSHED)]
    names = {path.name for path in chosen}
    if not any(name.endswith(".safetensors") for name in names) or not names & {"config.json", "adapter_config.json"}:
        raise ModelError(f"{folder} holds no model and no adapter to push; give --out, or a folder made by an export")
    if "README.md" not in names:
        raise ModelError(f"{folder} has no model card (README.md); write one, or export it again")
    left = tuple(path.name for path in there if path.name not in names)
    return Push(repository, private, folder, tuple((path.name, path.stat().st_size) for path in chosen), left)


def push(planned: Push) -> str:
    """Make the repository where it is not there, and commit all files at once; the commit's address.

    The token is that of HF_TOKEN or of `hf auth login`, and is shown nowhere. Raises ConfigError where there is none,
    it is not good or it may not write there, ResourceError where the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token()
    if not token:
        raise ConfigError("no token for the Hub: set HF_TOKEN, or log in with `hf auth login`")
    api, name = HfApi(token=token), planned.repository
    try:
        api.create_repo(name, private=planned.private or None, exist_ok=True)
        if planned.private and not api.model_info(name).private:
            raise ConfigError(f"--private: {name} is there already and public; make it private first, or name another")
        operations: Sequence[Any] = [
            CommitOperationAdd(path_in_repo=file, path_or_fileobj=planned.folder / file) for file, _ in planned.files
        ]
        return str(api.create_commit(name, operations, commit_message="Upload of adagrpo_ray").commit_url)
    except ConfigError:
        raise
    except Exception as error:  # of the network, of the Hub, of its client: each package has its own
        raise _explained(error, name, token) from None


def _explained(error: Exception, name: str, token: str) -> ConfigError | ResourceError:
    """The error in one line, by what the Hub answered, if it did."""
    said = first_line(error).replace(token, "***")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return ConfigError(f"the Hub does not take the token ({said}); set HF_TOKEN to another, or log in again")
    if status in (403, 404):
        return ConfigError(f"the token may not write to {name} ({said}); take one with write access to its owner")
    if status is not None:
        return ResourceError(f"the Hub refused {name} ({said})")
    return ResourceError(f"cannot reach the Hub ({said}); check the network, and that HF_HUB_OFFLINE is not set")
