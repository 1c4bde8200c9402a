"""One turn of the chat: a message is sent to one side or both, and the answers grow at the same time."""

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
class Question:
    """A message with everything that its answers depend on.

    adapter: None if none is chosen.
    by: the name of the adapter.
    """

    text: str
    settings: ChatSettings
    base: Base
    adapter: Path | None
    by: str

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that answer."""
        return SIDES if self.settings.view == "both" else (self.settings.view,)


class RunningTurn:
    """A turn in a task of its own, so that it ends, and releases the model, even if its page is closed."""

    def __init__(self, model: ChatModel, conversation: Conversation, question: Question) -> None:
        self._stop, self._news = asyncio.Event(), asyncio.Event()
        self._latest = (conversation, "")
        self._task = asyncio.create_task(self._run(turn(model, conversation, question, self._stop)))

    async def _run(self, steps: AsyncGenerator[tuple[Conversation, str], None]) -> None:
        try:
            async with aclosing(steps):
                async for self._latest in steps:
                    self._news.set()
        finally:
            self._news.set()

    async def updates(self) -> AsyncGenerator[tuple[Conversation, str], None]:
        """Conversation and status, as `turn` yields them, until the end of the turn; some may be skipped."""
        while not self._task.done():
            await self._news.wait()
            self._news.clear()
            yield self._latest
        self._task.result()
        yield self._latest

    async def stop(self) -> None:
        """Stop the answers; their texts so far stay."""
        self._stop.set()
        await asyncio.wait({self._task})


class _Turn:
    """The conversation during one turn, and the sides that have not answered."""

    def __init__(self, conversation: Conversation, question: Question) -> None:
        self.conversation = conversation.ask(question.text, question.sides)
        self.left = list(question.sides)
        self._names: dict[Side, str] = {"base": question.base.name, "adapter": question.by}

    @contextmanager
    def answering_errors(self, *sides: Side) -> Iterator[None]:
        """Make an AdaGRPOError of the block the answer of these sides, and remove them from `left`."""
        try:
            yield
        except AdaGRPOError as error:
            self.answer({s: Message(role="assistant", text=str(error), end="failed") for s in sides if s in self.left})
            self.left = [side for side in self.left if side not in sides]

    def stop(self) -> None:
        """Mark the sides that have not answered as stopped."""
        self.answer({side: Message(role="assistant", text="", end="stopped") for side in self.left})

    def answer(self, answers: Mapping[Side, Message]) -> None:
        """Set the answers so far."""
        named = {side: answer.model_copy(update={"by": self._names[side]}) for side, answer in answers.items()}
        self.conversation = self.conversation.answered(named)


async def turn(
    model: ChatModel, conversation: Conversation, question: Question, stop: asyncio.Event
) -> AsyncGenerator[tuple[Conversation, str], None]:
    """Answer a question; yields the conversation as the answers grow, with a status. `stop` ends the answers.

    An error on a side becomes its answer, which later prompts leave out.
    """
    this = _Turn(conversation, question)
    yield this.conversation, "waiting for the answers to another message ..." if model.lock.locked() else ""
    while model.lock.locked() and not stop.is_set():
        await asyncio.sleep(SHOW_EVERY_S)
    if not stop.is_set():
        async with model.lock, aclosing(_answers(model, this, question, stop)) as statuses:
            async for status in statuses:
                yield this.conversation, status
    this.stop()
    yield this.conversation, ""


async def _answers(model: ChatModel, this: _Turn, question: Question, stop: asyncio.Event) -> AsyncGenerator[str, None]:
    """Start the model, load the adapter, and stream the answers into `this`; yields the status after each change."""
    settings, base, rank = question.settings, question.base, max(_known_ranks(question.base))
    if "adapter" in this.left:
        with this.answering_errors("adapter"):
            rank = max(rank, _served_rank(question.adapter))
    if this.left:
        if not model.serves(base, rank):
            yield f"starting the model {base.name} ..."
        with this.answering_errors(*this.left):
            if not await _unless(stop, model.serve(base, rank)):
                return
    if "adapter" in this.left and question.adapter is not None:
        with this.answering_errors("adapter"):
            await model.use(question.adapter, base)
    yield ""
    streams, thinks = dict[Side, AsyncGenerator[Piece, None]](), dict[Side, bool]()
    after = settings.answer if settings.phases else None
    for side in tuple(this.left):
        with this.answering_errors(side):
            messages, data = this.conversation.on(side), base.config.data
            prompt = render(
                model.tokenizer,
                messages,
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
            this.answer({side: each.model_copy(update={"thinks": thinks[side]}) for side, each in answers.items()})
            yield ""
    this.left = []


async def grow(
    streams: Mapping[Side, AsyncGenerator[Piece, None]], stop: asyncio.Event
) -> AsyncGenerator[dict[Side, Message], None]:
    """Yield the answers of all sides so far, repeatedly until all have ended or `stop` is set.

    An AdaGRPOError of a stream becomes the answer of its side.
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
            with suppress(TimeoutError):  # limits the rate of updates
                await asyncio.wait_for(stop.wait(), SHOW_EVERY_S)
        cut = [side for side, task in tasks.items() if not task.done()]
        await _end(*(tasks[side] for side in cut))
        answers.update({side: answers[side].model_copy(update={"end": "stopped"}) for side in cut})
        yield dict(answers)
        for task in tasks.values():
            if not task.cancelled():
                task.result()  # raises any other error
    finally:
        await _end(stopping, *tasks.values())


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Wait for `work`, at most until `stop` is set; whether it has finished."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
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
    """The rank of an engine that serves the adapter. Raises ChatError or ModelError if there is none."""
    if adapter is None:
        raise ChatError("no adapter is chosen; choose a run and a checkpoint, or give a folder")
    r = read_settings(adapter).r
    rank = served_rank(r)
    if rank is None:
        raise ModelError(f"adapter={str(adapter)!r} has r={r}; choose one of a rank of up to {RANKS[-1]}")
    return rank


def _known_ranks(base: Base) -> set[int]:
    """Ranks of the adapters of all runs: an engine started for them need not restart for another one."""
    return {run.config.model.lora.r for run in base.runs} | {base.config.model.lora.r}
