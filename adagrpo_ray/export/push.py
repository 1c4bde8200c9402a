"""Uploads a folder to a model repository of the Hub, in one commit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import ConfigError, ModelError, ResourceError, first_line

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
PUSHED = ("*.safetensors", "*.json", "*.md", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
"""Files that are uploaded: no pickles, no code. Hidden files are left out too."""


@dataclass(frozen=True)
class Push:
    """A planned upload.

    repository: OWNER/NAME.
    private: whether a new repository is private.
    files: name and size in bytes of each file to upload.
    left: names of the files that are not uploaded.
    """

    repository: str
    private: bool
    folder: Path
    files: tuple[tuple[str, int], ...]
    left: tuple[str, ...]


def check_name(repository: str) -> None:
    """Raise ConfigError unless `repository` is a valid name of a repository, OWNER/NAME."""
    if not _NAME.fullmatch(repository) or "--" in repository or ".." in repository:
        raise ConfigError(f"--push={repository!r} is not OWNER/NAME; give a repository such as my-name/my-model")


def plan_push(folder: Path, repository: str, *, private: bool) -> Push:
    """Plan the upload of the model or adapter in `folder` to OWNER/NAME, without a request to the Hub.

    Raises ConfigError if the name is invalid, and ModelError if the folder has no model or no card.
    """
    check_name(repository)
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    chosen = [path for path in files if not path.name.startswith(".") and any(path.match(kind) for kind in PUSHED)]
    names = {path.name for path in chosen}
    if not any(name.endswith(".safetensors") for name in names) or not names & {"config.json", "adapter_config.json"}:
        raise ModelError(f"{folder} holds no model and no adapter to push; give --out, or a folder made by an export")
    if "README.md" not in names:
        raise ModelError(f"{folder} has no model card (README.md); write one, or export it again")
    left = tuple(path.name for path in files if path.name not in names)
    return Push(repository, private, folder, tuple((path.name, path.stat().st_size) for path in chosen), left)


def push(planned: Push) -> str:
    """Create the repository if it does not exist, and commit all files at once. Returns the URL of the commit.

    The token is that of HF_TOKEN or of `hf auth login`, and is never shown. Raises ConfigError if there is no token,
    it is invalid or it may not write there, and ResourceError if the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token()
    if not token:
        raise ConfigError("no token for the Hub: set HF_TOKEN, or log in with `hf auth login`")
    api, name = HfApi(token=token), planned.repository
    try:
        api.create_repo(name, private=planned.private or None, exist_ok=True)
        if planned.private and not api.model_info(name).private:
            raise ConfigError(
                f"--private: {name} exists already and is public; make it private, or choose another name"
            )
        operations: Sequence[Any] = [
            CommitOperationAdd(path_in_repo=file, path_or_fileobj=planned.folder / file) for file, _ in planned.files
        ]
        return str(api.create_commit(name, operations, commit_message="Upload of adagrpo_ray").commit_url)
    except ConfigError:
        raise
    except Exception as error:  # errors of the network, the Hub and its client have no common class
        raise _explained(error, name, token) from None


def _explained(error: Exception, name: str, token: str) -> ConfigError | ResourceError:
    """The error in one line, by the status of the Hub's response if there is one."""
    reason = first_line(error).replace(token, "***")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return ConfigError(f"the Hub refuses the token ({reason}); set HF_TOKEN to another, or log in again")
    if status in (403, 404):
        return ConfigError(f"the token may not write to {name} ({reason}); use one with write access to its owner")
    if status is not None:
        return ResourceError(f"the Hub refused {name} ({reason})")
    return ResourceError(f"cannot reach the Hub ({reason}); check the network, and that HF_HUB_OFFLINE is not set")
