"""Saves the settings and conversations of the chat as JSON files."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from threading import get_ident
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.config.section import PositiveInt, Section
from adagrpo_ray.errors import ChatError
from adagrpo_ray.viewer.conversation import Conversation

View = Literal["both", "base", "adapter"]
NAME = re.compile(r"[\w][\w .,()+-]{0,79}")
SETTINGS = "chat.json"
Stored = TypeVar("Stored", bound=Section)


class ChatSettings(Section):
    """The saved settings of the page. `run` and `checkpoint` are names from `offers`; `folder` overrides both."""

    model: str = Field("tiny", min_length=1, description="base model: one that is offered, a folder or a Hub name")
    run: str = Field("", description="run whose adapter answers")
    checkpoint: str = Field("", description="adapter of that run")
    folder: str = Field("", description="folder of another adapter; empty: the run's adapter")
    view: View = Field("both", description="which models answer: base, adapter or both")
    system_prompt: str = Field("", description="system message; empty: none")
    thinking: bool = Field(True, description="let the model think before it answers")
    max_new_tokens: PositiveInt = Field(256, description="largest number of tokens of an answer")
    sampling: PhaseParams = Field(PhaseParams(), description="sampling parameters")
    phases: bool = Field(False, description="use `answer` as sampling parameters after the thought")
    answer: PhaseParams = Field(PhaseParams(temperature=0.7), description="sampling parameters after the thought")


class Store:
    """The folder of settings and conversations. Files are written atomically."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def settings(self, default: ChatSettings) -> tuple[ChatSettings, str | None]:
        """The saved settings, or `default` if there are none; and a warning, or None.

        A file that cannot be read is renamed; the warning names it.
        """
        path = self._folder / SETTINGS
        try:
            return _read(path, ChatSettings), None
        except FileNotFoundError:
            return default, None
        except (OSError, ValueError) as error:
            aside = path.with_suffix(".bad")
            with suppress(OSError):
                path.replace(aside)
            return default, f"{path} could not be read ({_short(error)}); it is now {aside.name}, and defaults are used"

    def save_settings(self, settings: ChatSettings) -> None:
        """Save the settings. Raises ChatError if they cannot be written."""
        _write(self._folder / SETTINGS, settings)

    def names(self) -> list[str]:
        """The names of the saved conversations, the newest first."""
        try:
            found = [(path.stat().st_mtime, path.stem) for path in self._conversations.glob("*.json")]
        except OSError:  # a file was removed at the same time
            return []
        return [name for _, name in sorted(found, reverse=True)]

    def save(self, name: str, conversation: Conversation) -> None:
        """Save the conversation under this name, in place of an earlier one. Raises ChatError if that fails."""
        _write(self._path(name), conversation)

    def load(self, name: str) -> Conversation:
        """Read the conversation of this name. Raises ChatError if there is none, or it cannot be read."""
        path = self._path(name)
        try:
            return _read(path, Conversation)
        except FileNotFoundError:
            raise ChatError(f"there is no conversation {name!r} any more; choose another one") from None
        except (OSError, ValueError) as error:
            raise ChatError(f"{path} is no conversation ({_short(error)}); fix or remove it") from None

    @property
    def _conversations(self) -> Path:
        return self._folder / "conversations"

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):  # excludes paths
            raise ChatError(f"{name!r:.100} cannot be a name; use up to 80 letters, digits, spaces and . , ( ) + - _")
        return self._conversations / f"{name}.json"


def _read(path: Path, kind: type[Stored]) -> Stored:
    return kind.model_validate(json.loads(path.read_bytes()))


def _write(path: Path, content: Section) -> None:
    aside = path.with_name(f".{os.getpid()}.{get_ident()}.part")  # pages write from many threads
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            aside.write_text(content.model_dump_json(indent=1), encoding="utf-8")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise ChatError(f"cannot write {path} ({error.strerror or error}); free or unlock that place") from None


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(error).split())[:200]
