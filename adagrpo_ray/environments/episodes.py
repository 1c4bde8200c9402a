"""Episodes in place of completions: `generate` and `score` of the sampler, with environments between the turns.

A request of n completions becomes n episodes, in one process. Their first turns are one request of vLLM, which computes
the prompt once. Each episode then continues on its own, with a request for each turn, so that a slow one holds up no
other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.observation_text import ObservationTemplate
from adagrpo_ray.data.template_choice import use_template
from adagrpo_ray.environments.fork_server import EpisodeSetup
from adagrpo_ray.environments.host import CallError, Host, Sessions
from adagrpo_ray.environments.parser_choice import chosen_parser
from adagrpo_ray.environments.protocol import StepResult
from adagrpo_ray.environments.transcript import FAILED, Transcript, environment_seed, turn_seed
from adagrpo_ray.errors import ConfigError, DataError, ExtensionError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.rewards.consumption import Consumption
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.rewards.scorer import RewardScorer
from adagrpo_ray.types import MAX_TURNS, Completion, GenerationRequest, Prompt, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Generate = Callable[[GenerationRequest], Awaitable[tuple[Completion, ...]]]

OF_EPISODES = ("episode_rewards", "turns")
"""Arguments that reward functions get with episodes, in addition to the columns of the row."""


class Episodes:
    """Generates and scores episodes, over a `generate` for single turns and a scorer. Belongs to one event loop.

    The seed of each turn, and that of the environment, depend on the request alone. So a request that is sent again
    gives the same episodes, if its environments depend on their row and seed alone.
    """

    def __init__(
        self,
        config: Config,
        prompts: Iterable[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        tokenizer_path: str,
        generate: Generate,
        scorer: RewardScorer,
        given: Given = NOTHING,
    ) -> None:
        """`prompts` are all prompts of later requests. `tokenizer_path` is for parsers of vLLM."""
        self._settings, self._rewards = config.environment, config.rewards
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._tokenizer: Any = tokenizer
        self._template = ObservationTemplate(tokenizer, config.data.template_kwargs)
        self._generate, self._scorer = generate, scorer
        self._host = Host(episode_setup(config, tokenizer, tokenizer_path, given))
        self._seen: set[str] = set()  # kinds of errors
        self._notices: list[str] = []

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Generate n episodes. A failure of an environment ends its own episode, or those of the request.

        Raises the errors of the `generate` for turns. If it is cancelled, so are all its turns, and the process of the
        environments ends.
        """
        prompt = self._prompts[request.prompt_id]
        limit = min(request.max_new_tokens, self._settings.max_turn_tokens or request.max_new_tokens)
        async with self._host.sessions(request.n) as sessions:
            begun = [asyncio.create_task(self._begin(sessions, number, prompt)) for number in range(request.n)]
            tasks: list[asyncio.Task[Any]] = list(begun)
            try:
                first = await self._generate(replace(request, max_new_tokens=limit))
                episodes = [
                    asyncio.create_task(self._episode(request, number, completion, begin, sessions))
                    for number, (completion, begin) in enumerate(zip(first, begun, strict=True))
                ]
                tasks += episodes
                return tuple(await asyncio.gather(*episodes))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        """Score episodes by the reward functions, which also get `episode_rewards` and `turns`.

        If an environment failed, `rewards.on_error` decides: the scores of the group have the error (drop), or only
        those of the failed episodes are `rewards.error_score` (score). Raises ExtensionError with `stop`.
        """
        failed = np.array([completion.finish_reason == FAILED for completion in completions], np.bool_)
        policy, size = self._rewards.on_error, len(completions)
        error = next((c.turns[-1].error for c in completions if c.finish_reason == FAILED), None)
        if error is not None and policy == "stop":
            raise ExtensionError(f"{error}; correct the environment")
        if error is not None and policy == "drop":
            lost = np.full((size, len(self._rewards.names)), np.nan, np.float32)
            return Scores(np.full(size, self._rewards.error_score, np.float32), lost, error), np.zeros(size, np.bool_)
        columns = {**prompt.columns, **columns_of(completions)}
        scores, correct = await self._scorer.score(replace(prompt, columns=columns), completions)
        if error is None:
            return scores, correct
        return (
            Scores(
                rewards=np.where(failed, np.float32(self._rewards.error_score), scores.rewards),
                by_function=np.where(failed[:, None], np.float32(np.nan), scores.by_function),
                error=scores.error or error,
            ),
            correct & ~failed,
        )

    def notices(self) -> tuple[str, ...]:
        """Return the failures since the last call, the first one of each kind, and those of the scorer."""
        notices = tuple(self._notices)
        self._notices.clear()
        return (*notices, *self._scorer.notices())

    def consumption(self, purpose: str = "") -> Mapping[str, Consumption]:
        """Return the consumption of the scorer's judges and reward models, as `RewardScorer.consumption`."""
        return self._scorer.consumption(purpose)

    def close(self) -> None:
        """End all processes of environments, and the scoring processes."""
        self._host.close()
        self._scorer.close()

    async def _begin(self, sessions: Sessions, number: int, prompt: Prompt) -> None:
        """Make and reset the environment of an episode, which has to give the messages of its prompt again."""
        seed = environment_seed(prompt.id)
        await sessions.call("begin", number, row=row_of(prompt), seed=seed)

    async def _episode(
        self,
        request: GenerationRequest,
        number: int,
        first: Completion,
        begun: asyncio.Task[None],
        sessions: Sessions,
    ) -> Completion:
        transcript = Transcript()
        transcript.add_turn(first)
        try:
            await begun
            return transcript.completion(await self._continue(request, number, first, transcript, sessions))
        except (CallError, DataError) as error:
            kind = error.kind if isinstance(error, CallError) else str(error)
            message = f"environment of prompt {request.prompt_id}: {error}"
            self._note(message, kind)
            transcript.add_error(message)
            return transcript.completion(FAILED)

    async def _continue(
        self,
        request: GenerationRequest,
        number: int,
        turn: Completion,
        transcript: Transcript,
        sessions: Sessions,
    ) -> str:
        """Continue an episode after its first turn until it ends; returns the reason."""
        reason = turn.finish_reason
        while reason == "stop":
            found = await sessions.call("step", number, text=turn.text, raw=self._raw(turn.token_ids))
            result = StepResult(**{**found, "messages": tuple(found["messages"])})
            transcript.add_step(result)
            if result.done:
                return reason
            if transcript.turns >= self._settings.max_turns:
                reason = MAX_TURNS
                break
            tokens = self._template.token_ids(result.messages, int(turn.token_ids[-1]))
            room = self._room(request, transcript, len(tokens))
            if room < 1:
                reason = "length"
                break
            transcript.add_observation(result.messages, tokens)
            (turn,) = await self._generate(
                replace(
                    request,
                    n=1,
                    prompt_token_ids=np.concatenate([request.prompt_token_ids, transcript.tokens]),
                    max_new_tokens=room,
                    seed=turn_seed(request.seed, number, transcript.turns),
                )
            )
            transcript.add_turn(turn)
            reason = turn.finish_reason
        transcript.add_reward(float(await sessions.call("end", number)))
        return reason

    def _room(self, request: GenerationRequest, transcript: Transcript, observed: int) -> int:
        """Return how many tokens the next turn may have after an observation of so many tokens; below 1 for none.

        The prompts leave room for all of them in the engine (`EnvironmentSettings.longest`).
        """
        before = transcript.length - transcript.written
        if before + observed > self._settings.max_observation_tokens:
            return 0
        left = request.max_new_tokens - transcript.written
        return min(left, self._settings.max_turn_tokens or left)

    def _raw(self, token_ids: TokenIds) -> str:
        """Return the text of a turn for the parser of calls: with control tokens, without the token that ended it."""
        return str(self._tokenizer.decode(token_ids[:-1].tolist(), skip_special_tokens=False))

    def _note(self, message: str, kind: str) -> None:
        if kind not in self._seen:
            self._seen.add(kind)
            policy = self._rewards.on_error
            self._notices.append(f"{message} (rewards.on_error={policy}; further failures of its kind are not shown)")


def with_environment(
    config: Config,
    model: ModelFiles | None,
    prompts: Iterable[Prompt],
    generate: Generate,
    scorer: RewardScorer,
    given: Given = NOTHING,
) -> tuple[Generate, RewardScorer | Episodes]:
    """Return the `generate` and the scorer of a run: those of episodes if its configuration has an environment."""
    if not config.environment.active or model is None:
        return generate, scorer
    from transformers import AutoTokenizer

    path = model.here()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.model.trust_remote_code)
    use_template(tokenizer, model.template)
    episodes = Episodes(config, prompts, tokenizer, path, generate, scorer, given)
    return episodes.generate, episodes


def episode_setup(
    config: Config, tokenizer: PreTrainedTokenizerBase, tokenizer_path: str, given: Given
) -> EpisodeSetup:
    """Return the EpisodeSetup of a run. It has no parser if none reads the calls of the template.

    The check before the start requires one if there are tools.
    """
    parser: str | None
    try:
        parser = chosen_parser(config.environment.parser, tokenizer, config.data.template_kwargs)
    except ConfigError:
        parser = None
    return EpisodeSetup(config.environment, given, parser, tokenizer_path)


def row_of(prompt: Prompt) -> dict[str, Any]:
    """Return the row that `reset` gets: the columns of the prompt, and its problem and answer."""
    return {"problem": prompt.text, "answer": prompt.answer, **prompt.columns}


def columns_of(completions: Sequence[Completion]) -> Mapping[str, Any]:
    """Return the arguments of reward functions that episodes have: rewards [G], and the turns of each episode."""
    return {
        "episode_rewards": [sum(turn.reward or 0.0 for turn in c.turns) for c in completions],
        "turns": [[asdict(turn) for turn in c.turns] for c in completions],
    }
