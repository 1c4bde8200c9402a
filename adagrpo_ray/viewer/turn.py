"""One turn of the chat: a message goes to one side or both, and the answers grow side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adagrpo_ray.config.data import PLAIN
from adagrpo_ray.errors import AdaGRPOError, ChatError, ModelError
from adagrpo_ray.lora.adapters import RANKS, read_settings, served_rank
from adagrpo_ray.rollout.streaming import Piece
from adagrpo_ray.viewer.chat_model import ChatModel
from adagrpo_ray.viewer.conversation import SIDES, Conversation, Message, Side, render, sampling_params
from adagrpo_ray.viewer.offers import Base
from adagrpo_ray.viewer.store import ChatSettings

SHOW_EVERY_S = 0.05


@dataclass(frozen=True)
class Asked:
    """A message with all that its answers depend on; `adapter` is None where none is chosen, `by` names it."""

    text: str
    settings: ChatSettings
    base: Base
    adapter: Path | None
    by: str

    @property
    def sides(self) -> tuple[Side, ...]:
        """Who answers."""
        return SIDES if self.settings.view == "both" else (self.settings.view,)


class Going:
    """A turn that goes on by itself, so that it ends, and leaves the model, also where its page was closed."""

    def __init__(self, model: ChatModel, conversation: Conversation, asked: Asked) -> None:
        self._stop, self._news = asyncio.Event(), asyncio.Event()
        self._latest = (conversation, "")
        self._task = asyncio.create_task(self._go(turn(model, conversation, asked, self._stop)))

    async def _go(self, steps: AsyncGenerator[tuple[Conversation, str], None]) -> None:
        try:
            async with aclosing(steps):
                async for self._latest in steps:
                    self._news.set()
        finally:
            self._news.set()

    async def shown(self) -> AsyncGenerator[tuple[Conversation, str], None]:
        """What there is to see of it, as in `turn`, until its end."""
        while not self._task.done():
            await self._news.wait()
            self._news.clear()
            yield self._latest
        self._task.result()
        yield self._latest

    async def stop(self) -> None:
        """Have the answers end where they are."""
        self._stop.set()
        await asyncio.wait({self._task})


class _Turn:
    """The conversation of one turn, and the sides that may still answer."""

    def __init__(self, conversation: Conversation, asked: Asked) -> None:
        self.conversation = conversation.ask(asked.text, asked.sides)
        self.left = list(asked.sides)
        self._names: dict[Side, str] = {"base": asked.base.name, "adapter": asked.by}

    @contextmanager
    def failing(self, *sides: Side) -> Iterator[None]:
        """An error within it is the answer of these sides, which are then left out."""
        try:
            yield
        except AdaGRPOError as error:
            self.say({s: Message(role="assistant", text=str(error), end="failed") for s in sides if s in self.left})
            self.left = [side for side in self.left if side not in sides]

    def give_up(self) -> None:
        """The sides that are left do not answer any more."""
        self.say({side: Message(role="assistant", text="", end="stopped") for side in self.left})

    def say(self, answers: Mapping[Side, Message]) -> None:
        """These are the answers so far."""
        named = {side: said.model_copy(update={"by": self._names[side]}) for side, said in answers.items()}
        self.conversation = self.conversation.answered(named)


async def turn(
    model: ChatModel, conversation: Conversation, asked: Asked, stop: asyncio.Event
) -> AsyncGenerator[tuple[Conversation, str], None]:
    """The conversation as the answers grow, with what goes on meanwhile in words; `stop` ends them where they are.

    What goes wrong on a side is its answer, which the model does not read later on.
    """
    this = _Turn(conversation, asked)
    yield this.conversation, "waiting for the answers to another message ..." if model.lock.locked() else ""
    while model.lock.locked() and not stop.is_set():
        await asyncio.sleep(SHOW_EVERY_S)
    if not stop.is_set():
        async with model.lock, aclosing(_answers(model, this, asked, stop)) as doing:
            async for words in doing:
                yield this.conversation, words
    this.give_up()
    yield this.conversation, ""


async def _answers(model: ChatModel, this: _Turn, asked: Asked, stop: asyncio.Event) -> AsyncGenerator[str, None]:
    """Has the model serve what was asked for, then the answers grow in `this`; says what goes on."""
    settings, base, rank = asked.settings, asked.base, max(_known_ranks(asked.base))
    if "adapter" in this.left:
        with this.failing("adapter"):
            rank = max(rank, _served_rank(asked.adapter))
    if this.left:
        if not model.serves(base, rank):
            yield f"starting the model {base.name} ..."
        with this.failing(*this.left):
            if not await _unless(stop, model.serve(base, rank)):
                return
    if "adapter" in this.left and asked.adapter is not None:
        with this.failing("adapter"):
            await model.use(asked.adapter, base)
    yield ""
    streams, thinks = dict[Side, AsyncGenerator[Piece, None]](), dict[Side, bool]()
    after = settings.answer if settings.phases else None
    for side in tuple(this.left):
        with this.failing(side):
            said, data = this.conversation.on(side), base.config.data
            prompt = render(
                model.tokenizer,
                said,
                settings.system_prompt,
                settings.thinking,
                data.format.think_end,
                data.template_kwargs,
                plain=data.chat_template == PLAIN,
            )
            sampling = sampling_params(settings.sampling, after, settings.thinking)
            streams[side] = model.stream(side, prompt, sampling, settings.max_new_tokens)
            thinks[side] = prompt.thinks
    async with aclosing(grow(streams, stop)) as growing:
        async for answers in growing:
            this.say({side: said.model_copy(update={"thinks": thinks[side]}) for side, said in answers.items()})
            yield ""
    this.left = []


async def grow(
    streams: Mapping[Side, AsyncGenerator[Piece, None]], stop: asyncio.Event
) -> AsyncGenerator[dict[Side, Message], None]:
    """The answers of all sides so far, again and again until all have ended, or `stop` is set.

    A stream that raises an AdaGRPOError is an answer of its own.
    """
    answers = {side: Message(role="assistant", text="") for side in streams}
    news = asyncio.Event()

    async def follow(side: Side, pieces: AsyncGenerator[Piece, None]) -> None:
        begun = time.monotonic()
        text, tokens, end = "", 0, ""
        try:
            async with aclosing(pieces) as open_pieces:
                async for piece in open_pieces:
                    text, tokens = text + piece.text, tokens + piece.tokens
                    end = {"stop": "stop", "length": "length"}.get(piece.finish_reason or "", "")
                    seconds = time.monotonic() - begun
                    answers[side] = Message.model_validate(
                        {"role": "assistant", "text": text, "tokens": tokens, "seconds": seconds, "end": end}
                    )
                    news.set()
        except AdaGRPOError as error:
            answers[side] = Message(role="assistant", text=str(error), end="failed")
        finally:
            news.set()

    tasks = {side: asyncio.create_task(follow(side, pieces)) for side, pieces in streams.items()}
    stopping = asyncio.create_task(stop.wait())
    try:
        while not all(task.done() for task in tasks.values()) and not stop.is_set():
            waiting = asyncio.create_task(news.wait())
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            news.clear()
            yield dict(answers)
            with suppress(TimeoutError):  # many tokens are shown at a time
                await asyncio.wait_for(stop.wait(), SHOW_EVERY_S)
        cut = [side for side, task in tasks.items() if not task.done()]
        await _end(*(tasks[side] for side in cut))
        answers.update({side: answers[side].model_copy(update={"end": "stopped"}) for side in cut})
        yield dict(answers)
        for task in tasks.values():
            if not task.cancelled():
                task.result()  # an error that is none of ours
    finally:
        await _end(stopping, *tasks.values())


async def _unless(stop: asyncio.Event, doing: Coroutine[Any, Any, object]) -> bool:
    """Wait for `doing`, but not longer than until `stop`; whether it has come to its end."""
    task, stopping = asyncio.create_task(doing), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task.done()
    finally:
        await _end(task, stopping)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _served_rank(adapter: Path | None) -> int:
    """The rank of an engine that serves the adapter."""
    if adapter is None:
        raise ChatError("no adapter is chosen; choose a run and a checkpoint, or give a folder")
    r = read_settings(adapter).r
    rank = served_rank(r)
    if rank is None:
        raise ModelError(f"adapter={str(adapter)!r} has r={r}; choose one of a rank of up to {RANKS[-1]}")
    return rank


def _known_ranks(base: Base) -> set[int]:
    """Ranks of the runs' adapters, so that the engine need not start again for one of them."""
    return {run.config.model.lora.r for run in base.runs} | {base.config.model.lora.r}
