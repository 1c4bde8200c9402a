"""Whether completions end by themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from adagrpo_ray.types import Completion, GenerationRequest

Generate = Callable[[GenerationRequest], Awaitable[tuple[Completion, ...]]]


class Endings:
    """Counts completions until one has ended by itself, and says once that none has."""

    def __init__(self, max_new_tokens: int, *, plain: bool = False) -> None:
        """`plain` says that prompts are plain text, whose completions have no end of a turn."""
        self._limit, self._plain = max_new_tokens, plain
        self._counted = 0
        self._settled = False  # one ended, or it was said that none did

    def count(self, completions: Iterable[Completion]) -> None:
        """Take note of these."""
        for completion in completions:
            if completion.finish_reason == "stop":
                self._settled = True
            self._counted += 1

    def watched(self, generate: Generate) -> Generate:
        """The same `generate`, whose completions are counted."""

        async def counted(request: GenerationRequest) -> tuple[Completion, ...]:
            completions = await generate(request)
            self.count(completions)
            return completions

        return counted

    def notices(self) -> tuple[str, ...]:
        """At the end of a step or an evaluation: that no completion so far ended by itself; nothing if one did."""
        if self._settled or not self._counted:
            return ()
        self._settled = True
        if self._plain:
            return (
                f"warning: none of {self._counted} completions ended by itself, all were cut off at "
                f"rollout.max_new_tokens={self._limit}. With data.chat_template=none generation stops at the "
                "tokenizer's eos_token and at the eos_token_id of generation_config.json: base models often write on, "
                "so let the prompts show an end, or raise it",
            )
        return (
            f"warning: none of {self._counted} completions ended by itself, all were cut off at "
            f"rollout.max_new_tokens={self._limit}: raise it, or look at what ends the model's turn. Generation stops "
            "at the tokenizer's eos_token, at the token that its chat template writes after the assistant's message, "
            "and at the eos_token_id of generation_config.json",
        )
