"""Streams a growing completion, for a conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.types import GenerationRequest


@dataclass(frozen=True)
class Piece:
    """The newest part of a completion; `finish_reason` is None until its end."""

    text: str
    tokens: int
    finish_reason: str | None


class StreamingEngine(RolloutEngine):
    """An engine whose completions are read while they grow."""

    async def stream(self, request: GenerationRequest, *, base: bool = False) -> AsyncGenerator[Piece, None]:
        """Stream one completion with the version in effect or, with `base`, of the base model (mode `adapter`).

        Close the generator (`contextlib.aclosing`) to abort the request.
        """
        from vllm.sampling_params import RequestOutputKind

        params = self._params(request, detokenize=False, output_kind=RequestOutputKind.DELTA)
        text = self._text.stream()
        with self._started.alive():
            async with aclosing(self._outputs(request, params, None if base else self._lora)) as outputs:
                async for output in outputs:
                    grown = output.outputs[0]
                    news = text.grow(grown.token_ids, grown.finish_reason)
                    yield Piece(news, len(grown.token_ids), grown.finish_reason)
