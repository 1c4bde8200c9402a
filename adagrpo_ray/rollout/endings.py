"""Warns if no completion ends by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from adagrpo_ray.types import Completion, GenerationRequest

Generate = Callable[[GenerationRequest], Awaitable[tuple[Completion, ...]]]


class Endings:
    """Counts completions until one has ended by itself, and warns once if none has."""

    def __init__(self, max_new_tokens: int, *, plain: bool = False) -> None:
        """Start counting; `plain` means that prompts are plain text, without an end of the assistant's turn."""
        self._limit, self._plain = max_new_tokens, plain
        self._counted = 0
        self._settled = False  # one ended, or the warning was returned

    def count(self, completions: Iterable[Completion]) -> None:
        """Count the completions, and look for one that ended by itself."""
        for completion in completions:
            if completion.finish_reason == "stop":
                self._settled = True
            self._counted += 1

    def watched(self, generate: Generate) -> Generate:
        """Wrap `generate` so that its completions are counted."""

        async def counted(request: GenerationRequest) -> tuple[Completion, ...]:
            completions = await generate(request)
            self.count(completions)
            return completions

        return counted

    def notices(self) -> tuple[str, ...]:
        """Warn once, at the end of a step or an evaluation, if no completion so far ended by itself."""
        if self._settled or not self._counted:
            return ()
        self._settled = True
        if self._plain:
            return (
                f"warning: none of {self._counted} completions ended by itself, all were cut off at "
                f"rollout.max_new_tokens={self._limit}. With data.chat_template=none generation stops at the "
                "tokenizer's eos_token and at the eos_token_id of generation_config.json. Base models often continue "
                "without an end: show one in the prompts, or raise rollout.max_new_tokens",
            )
        return (
            f"warning: none of {self._counted} completions ended by itself, all were cut off at "
            f"rollout.max_new_tokens={self._limit}: raise it, or check which token ends the model's turn. Generation "
            "stops at the tokenizer's eos_token, at the token that its chat template writes after the assistant's "
            "message, and at the eos_token_id of generation_config.json",
        )
