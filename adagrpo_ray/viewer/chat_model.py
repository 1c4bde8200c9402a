"""The engine of the chat, which serves one base model together with the adapter chosen last."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo_ray.config import Config
from adagrpo_ray.config.sampling import PhaseParams, SamplingParams
from adagrpo_ray.data.template_choice import chosen_template
from adagrpo_ray.errors import ActorLostError, AdaGRPOError, ChatError, ModelError, RolloutError, first_line
from adagrpo_ray.lora.adapters import Adapter, check_fit, read_adapter, weights_file
from adagrpo_ray.model.pretrained import linear_shapes, load_tokenizer, read_model_config, resolve_model
from adagrpo_ray.rollout.engine_start import start_engine
from adagrpo_ray.rollout.streaming import Piece, StreamingEngine
from adagrpo_ray.types import GenerationRequest
from adagrpo_ray.viewer.conversation import Rendered, Side
from adagrpo_ray.viewer.offers import Base

CONVERSATION = 4096
"""Largest number of tokens of a conversation, unless rollout.max_model_len is set or the model has fewer positions."""
SEQUENCES = 8


class ChatModel:
    """The engine. It starts with the first message, and again for another base model or a larger rank.

    It answers one message at a time: a caller has to hold `lock`.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.tokenizer: Any = None
        self.limit = 0  # largest number of tokens of a conversation
        self._thread = ThreadPoolExecutor(1, "engine")
        self._begun: asyncio.Task[None] | None = None
        self._engine: StreamingEngine | None = None
        self._serving: tuple[Config, int] | None = None
        self._adapter: tuple[str, int, int] | None = None
        self._version = -1

    @property
    def starting(self) -> bool:
        """Whether the engine is starting; then it ends only with this process."""
        return self._begun is not None and (not self._begun.done() or self._begun.cancelled())

    def serves(self, base: Base, rank: int) -> bool:
        """Whether the engine is running for this model and adapters of this rank."""
        return self._serving is not None and self._serving[0] == base.config and self._serving[1] >= rank

    async def serve(self, base: Base, rank: int) -> None:
        """Start the engine for `base` and adapters of up to `rank`, unless it is running for them.

        If the caller is cancelled, the start continues, for the next caller. Raises ModelError if the start fails.
        """
        if self._begun is not None:
            await asyncio.wait({self._begun})
        if not self.serves(base, rank):
            await self.stop()
            self._begun = asyncio.create_task(self._begin(base, rank))
            await asyncio.shield(self._begun)

    async def _begin(self, base: Base, rank: int) -> None:
        try:
            loop = asyncio.get_running_loop()
            self._engine, self.tokenizer, self.limit = await loop.run_in_executor(
                self._thread, _start, base.config, rank
            )
            # The first request triggers the compilation of further kernels.
            tokens = np.zeros(4, np.int32)
            await self._running().generate(GenerationRequest("warm-up", tokens, 2, SamplingParams(), 2, seed=0))
            self._serving = base.config, rank
        except AdaGRPOError:
            raise
        except Exception as error:  # vLLM raises various errors, and prints the details on the terminal
            raise ModelError(
                f"{base.name} does not start ({first_line(error)}); the terminal has the details"
            ) from error
        finally:
            if self._serving is None:
                await self.stop()

    async def use(self, path: Path, base: Base) -> None:
        """Load the adapter at `path` into the engine, unless it is loaded and unchanged.

        Raises ModelError if it cannot be served, and the errors of `read_adapter`.
        """
        stamp = _stamp(path)
        if self._adapter == stamp:
            return
        adapter = await asyncio.to_thread(_read, path, base.config)
        engine = self._running()
        self._adapter = None
        self._version += 1
        try:
            await engine.apply(adapter.packed(self._version, base.config.model.dtype))
        except ActorLostError:
            await self.stop()
            raise
        except Exception as error:  # vLLM raises various errors for tensors that it does not support
            raise ModelError(f"the adapter {str(path)!r} cannot be served ({first_line(error)})") from error
        self._adapter = stamp

    async def stream(
        self, side: Side, prompt: Rendered, sampling: SamplingParams, max_new_tokens: int
    ) -> AsyncGenerator[Piece, None]:
        """Stream the answer. Raises ChatError if the conversation is too long, and RolloutError if the engine fails."""
        room = self.limit - len(prompt.token_ids)
        if room < 1:
            raise ChatError(
                f"the conversation has {len(prompt.token_ids)} tokens, but at most {self.limit} are possible; clear it"
            )
        request = GenerationRequest(
            prompt_id=side,
            prompt_token_ids=np.asarray(prompt.token_ids, np.int32),
            n=1,
            sampling=sampling,
            max_new_tokens=min(max_new_tokens, room),
            seed=random.randrange(2**31),
        )
        try:
            async with aclosing(self._running().stream(request, base=side == "base")) as pieces:
                async for piece in pieces:
                    yield piece
        except ActorLostError:
            await self.stop()
            raise
        except AdaGRPOError:
            raise
        except Exception as error:  # vLLM raises various errors for requests that it refuses
            raise RolloutError(f"the model gave no answer: {_cause(error)}") from error

    async def stop(self) -> None:
        """Stop the engine's processes. The next message starts them again."""
        engine, self._engine, self._serving, self._adapter = self._engine, None, None, None
        if engine is not None:
            await engine.stop()

    def _running(self) -> StreamingEngine:
        if self._engine is None:
            raise RolloutError("the model has stopped; send the message again")
        return self._engine


def _cause(error: Exception) -> str:
    """The message of the error that vLLM wraps in a general one."""
    cause = error.__cause__
    return first_line(cause if isinstance(cause, Exception) else error)


def _stamp(path: Path) -> tuple[str, int, int]:
    """A stamp of the adapter at `path`, which changes when it is written again. Raises ModelError if it is gone."""
    file = weights_file(path)
    try:
        status = file.stat()
    except OSError:
        raise ModelError(f"the adapter {str(path)!r} holds no {file.name} any more; choose another one") from None
    return str(file), status.st_mtime_ns, status.st_size


def _read(path: Path, config: Config) -> Adapter:
    """Read the adapter at `path`, and check that it fits the model. Raises as `read_adapter` and `check_fit` do."""
    adapter = read_adapter(path)
    check_fit(adapter, linear_shapes(resolve_model(config), config.model), config.model.path)
    return adapter


def _start(config: Config, rank: int) -> tuple[StreamingEngine, Any, int]:
    """Start the engine; the engine, its tokenizer, and the largest number of tokens of a conversation."""
    path = resolve_model(config)
    tokenizer = load_tokenizer(path, config.model, config.data)
    limit = _limit(config, path)
    served = _serving(config, rank)
    return StreamingEngine(start_engine(path, limit, served, chosen_template(config.data)), served), tokenizer, limit


def _limit(config: Config, path: str) -> int:
    most = getattr(read_model_config(path, config.model).get_text_config(), "max_position_embeddings", None)
    limit = config.rollout.max_model_len or max(CONVERSATION, 2 * config.rollout.max_new_tokens)
    return limit if most is None else min(limit, int(most))


def _serving(config: Config, rank: int) -> Config:
    """The settings of a run, changed for a chat engine with adapters of up to `rank`."""
    rollout = {"lora_mode": "adapter", "sleep": False, "max_num_seqs": SEQUENCES}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"lora": config.model.lora.model_copy(update={"r": rank})}),
            "rollout": config.rollout.model_copy(update=rollout),
            "algorithm": config.algorithm.model_copy(update={"max_staleness": 0}),
            # Any message may use separate parameters for the answer, which the engine has to be started for.
            "evaluation": config.evaluation.model_copy(update={"sampling": SamplingParams(answer=PhaseParams())}),
        }
    )
