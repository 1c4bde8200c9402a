"""vLLM's own log of one rollout actor: a file of the run folder with messages of level INFO.

It has the size of the KV cache, the attention backend and the fallbacks, which the terminal does not show.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from adagrpo_ray.errors import AdaGRPOError
from adagrpo_ray.storage import places as storage
from adagrpo_ray.storage.cache import cache_folder

FOLDER = "vllm"
"""The folder of these files in the run folder."""


class EngineLog:
    """The log of one actor in the run folder `home`, a path or URL.

    All nodes share a path, so vLLM's processes append to the file itself. For a URL they append to a file on their own
    node, in the cache folder, which `copy` sends to the run folder.
    """

    def __init__(self, home: str, actor: str) -> None:
        self._home, self._name = home, f"{FOLDER}/{actor.replace(' ', '-')}.log"
        if storage.is_url(home):
            self._local = cache_folder() / "logs" / sha256(home.encode()).hexdigest()[:16]
        else:
            self._local = Path(storage.plain(home)).absolute()

    @property
    def file(self) -> Path:
        """The file on this node to which vLLM's processes append."""
        return self._local / self._name

    def copy(self, *, last: bool = False) -> None:
        """Send the file to a run folder at a URL, and with `last` remove it here.

        If it cannot be sent, the run continues and the file stays.
        """
        if storage.is_url(self._home):
            with suppress(AdaGRPOError):
                storage.push(self._local, self._home, [self._name])
                if last:
                    self.file.unlink()


@contextmanager
def logging_to(file: Path | None) -> Iterator[Any]:
    """Give the block a LoggingConfig for vLLM that also appends messages from level INFO on to `file`.

    The processes that start in the block read it; the terminal gets the messages of VLLM_LOGGING_LEVEL, as before. It
    is None if there is no file, or if the environment configures vLLM's logging. Raises ResourceError if the folder of
    the file cannot be made.
    """
    configured = "VLLM_LOGGING_CONFIG_PATH" in os.environ or os.environ.get("VLLM_CONFIGURE_LOGGING") == "0"
    if file is None or configured:
        yield None
        return
    from vllm.config.logging import LoggingConfig
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    with storage.writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    logging: dict[str, Any] = deepcopy(DEFAULT_LOGGING_CONFIG)
    level = "DEBUG" if os.environ.get("VLLM_LOGGING_LEVEL", "").upper() == "DEBUG" else "INFO"
    appended = {"class": "logging.FileHandler", "formatter": "vllm", "filename": str(file), "encoding": "utf-8"}
    logging["handlers"]["file"] = appended
    logging["loggers"]["vllm"] |= {"handlers": ["vllm", "file"], "level": level}
    with NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as written:
        json.dump(logging, written)
        written.flush()
        yield LoggingConfig(pylogging_config_file=written.name)
