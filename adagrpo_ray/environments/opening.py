"""The prompts of episodes, before a run starts: rows of environments, their resets, and checks of the chat template."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from adagrpo_ray.config.environments import ENVIRONMENT
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.formats import Row
from adagrpo_ray.data.messages import Chat
from adagrpo_ray.data.observation_text import ObservationTemplate
from adagrpo_ray.data.prompts import Opened, PromptSets, load_prompts
from adagrpo_ray.environments.episodes import episode_setup
from adagrpo_ray.environments.host import LOAD_TIMEOUT_S, CallError, Host
from adagrpo_ray.environments.parser_choice import chosen_parser
from adagrpo_ray.environments.transcript import environment_seed
from adagrpo_ray.errors import ConfigError, DataError
from adagrpo_ray.extensions.given import NOTHING, Given

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

AT_ONCE = 32
"""Resets in one process; as many of them at a time."""


def load_episode_prompts(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_path: str,
    given: Given = NOTHING,
    *,
    training: bool = True,
) -> PromptSets:
    """Return the prompts of `load_prompts`; with an environment those that its `reset` gives, and with its tools.

    Raises the errors of `load_prompts`. Raises ConfigError if the environment cannot be loaded or reset, or if the chat
    template does not fit episodes.
    """
    if not config.environment.active:
        return load_prompts(config, tokenizer, training=training)
    opening = _Opening(config, tokenizer, tokenizer_path, given)
    sets = load_prompts(config, tokenizer, training=training, opening=opening)
    return replace(sets, notes=(*sets.notes, *_notes(config)))


class _Opening:
    """Opens the chats of rows, each call in an event loop and with processes of its own.

    Raises ConfigError if the environment cannot be loaded, or if the chat template does not fit episodes.
    """

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, tokenizer_path: str, given: Given) -> None:
        self._setup = episode_setup(config, tokenizer, tokenizer_path, given)
        self._source = config.data.source
        self._tools, self._rows = _in_loop(self._load())
        if self._tools:
            chosen_parser(config.environment.parser, tokenizer, config.data.template_kwargs)
        roles = [*(["user"] if config.environment.name is not None else []), *(["tool"] if self._tools else [])]
        ObservationTemplate(tokenizer, config.data.template_kwargs, self._tools).check(roles)

    def rows(self) -> Sequence[Row]:
        """Return the rows of the environment's data."""
        return self._rows

    def chats(self, opened: Sequence[Opened]) -> Sequence[Chat]:
        """Return the chats of the prompts, with the tools of the environment, in the order of the rows.

        If the reset of the first row gives no messages, the others are not reset.
        """
        chats = [Chat(each.chat.messages, (*self._tools, *each.chat.tools)) for each in opened]
        if self._setup.settings.name is None or not opened:
            return chats
        messages = _in_loop(self._reset(opened))
        return [replace(chat, messages=tuple(new)) if new else chat for chat, new in zip(chats, messages, strict=True)]

    async def _load(self) -> tuple[tuple[dict[str, Any], ...], Sequence[Row]]:
        host = Host(self._setup)
        try:
            tools = tuple(await host.tools())
            if self._source != ENVIRONMENT:
                return tools, ()
            async with host.sessions(1) as sessions:
                return tools, await sessions.call("rows", limit_s=LOAD_TIMEOUT_S)
        except CallError as error:
            raise ConfigError(f"environment.name={self._setup.settings.name!r}: {error}; correct its rows") from None
        finally:
            host.close()

    async def _reset(self, opened: Sequence[Opened]) -> list[Any]:
        host = Host(self._setup)

        async def of_part(part: Sequence[Opened]) -> list[Any]:
            async with host.sessions(len(part)) as sessions:
                calls = [
                    sessions.call("begin", number, row=each.row, seed=environment_seed(each.id))
                    for number, each in enumerate(part)
                ]
                return list(await asyncio.gather(*calls))

        try:
            first = await of_part(opened[:1])
            if first == [None]:
                return [None] * len(opened)
            parts = [opened[start : start + AT_ONCE] for start in range(1, len(opened), AT_ONCE)]
            return [*first, *(each for part in await asyncio.gather(*map(of_part, parts)) for each in part)]
        except CallError as error:
            raise DataError(
                f"environment.name={self._setup.settings.name!r}: reset failed for a row of data.source: {error}; "
                "correct reset, or the data"
            ) from None
        finally:
            host.close()


def _notes(config: Config) -> list[str]:
    """Return remarks on the settings of episodes, for the user."""
    if config.environment.name is not None and ENVIRONMENT not in config.rewards.names:
        return [
            f"the rewards of environment.name={config.environment.name!r} are not used, since rewards.functions "
            f"{config.rewards.names} does not name {ENVIRONMENT!r}"
        ]
    return []


def _in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread, since the event loop of a notebook may run in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
