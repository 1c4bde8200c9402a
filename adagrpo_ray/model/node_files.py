"""The base model on the other nodes of a cluster."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.gguf_model import dequantised
from adagrpo_ray.storage.cache import cache_folder


@dataclass(frozen=True)
class ModelFiles:
    """A base model, as it is sent to the nodes.

    `path` is a Hub name or a folder. `files` has the files of the tiny model by name: other nodes cannot have them,
    since it was trained on the machine that started the run. `gguf` is the name of a GGUF file in the settings. It is
    too large to send, so each node dequantises its own copy of the same file.
    `template` is the result of `chosen_template` on the machine that started the run.
    """

    path: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    gguf: str | None = None
    template: str | None = None

    @classmethod
    def carry(cls, folder: str) -> ModelFiles:
        """Return the model in `folder` with its files."""
        return cls(folder, {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()})

    def here(self) -> str:
        """Return the Hub name or folder to load it from on this node.

        Raises ModelError if the model is missing here or there is no room for it.
        """
        path = Path(self.path)
        if path.is_dir():
            return self.path
        if self.files:
            return str(self._unpacked())
        if self.gguf is not None:
            return self._dequantised(self.gguf)
        if path.is_absolute() or self.path.startswith("."):
            raise ModelError(
                f"model.path={self.path!r} is no folder on node {socket.gethostname()}; put the model on storage that "
                "all nodes share, or give a Hub name"
            )
        return self.path

    def _dequantised(self, name: str) -> str:
        """Return the folder of the GGUF file on this node. Raises ModelError unless it is the file of the run."""
        node = socket.gethostname()
        try:
            folder = dequantised(name)
        except ModelError as error:
            raise ModelError(f"on node {node}: {error}") from None
        if folder.name != Path(self.path).name:  # the names have the hash of the file
            raise ModelError(
                f"on node {node} model.path={name!r} is not the file of the machine that started the run; copy the "
                "same file to all nodes, or put it on storage that they share"
            )
        return str(folder)

    def _unpacked(self) -> Path:
        """Return a folder in the cache of this node with the files, which are written in one piece."""
        digest = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + len(data).to_bytes(8, "big") + data)
        folder = cache_folder() / f"carried-{digest.hexdigest()[:16]}"
        if folder.is_dir():
            return folder
        aside: str | None = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            aside = tempfile.mkdtemp(prefix="carried-", dir=folder.parent)
            for name, data in self.files.items():
                Path(aside, name).write_bytes(data)
            os.replace(aside, folder)
        except OSError as error:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            if not folder.is_dir():  # another actor of this node may have been faster
                raise ModelError(
                    f"cannot write the tiny model to {folder} on node {socket.gethostname()} "
                    f"({error.strerror or error}); free or unlock that place, or set XDG_CACHE_HOME to another"
                ) from error
        return folder
