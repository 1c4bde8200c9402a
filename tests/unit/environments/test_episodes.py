"""Episodes over a scripted policy: their tokens and masks, limits, seeds, rewards and failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.environments import episodes as module
from adagrpo_ray.environments.episodes import Episodes
from adagrpo_ray.environments.transcript import FAILED, environment_seed
from adagrpo_ray.errors import ExtensionError, RequestLostError
from adagrpo_ray.extensions.given import Given, give
from adagrpo_ray.rewards.registry import Scores, load_reward, score_group
from adagrpo_ray.types import MAX_TURNS, Completion, GenerationRequest, Prompt, SamplingParams
from tests.support.in_process import InProcess
from tests.support.loops import run
from tests.support.scripted import tokenizer_of

TOKENIZER = tokenizer_of()
(END,) = TOKENIZER.encode("<|im_end|>", add_special_tokens=False)
OPENING = TOKENIZER.apply_chat_template(
    [{"role": "user", "content": "begin"}], tokenize=False, add_generation_prompt=True
)
PROMPT = Prompt(
    "p-1",
    "begin",
    np.array(TOKENIZER.encode(OPENING, add_special_tokens=False), np.int32),
    answer="42",
    columns={"goal": 3},
)
BETWEEN = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
Policy = Callable[[GenerationRequest, int], str]


class Counter:
    """Counts turns up to the goal of the row; a turn "raise" raises, a turn "wait" waits for ever."""

    def reset(self, row: Mapping[str, Any], seed: int) -> None:
        self.goal, self.turns, self.seed = int(row["goal"]), 0, seed
        if row.get("broken"):
            raise RuntimeError("no reset today")

    async def step(self, message: Mapping[str, Any]) -> Any:
        if message["content"] == "raise":
            raise ValueError("no step today")
        if message["content"] == "wait":
            await asyncio.Event().wait()
        self.turns += 1
        return f"turn {self.turns}", 0.25, self.turns == self.goal, {"tool": "count"}

    def end(self) -> float:
        return 8.0


class Rollouts:
    """A policy whose turns a function writes: `turns(request, number)` is the text; more than its limit is cut off."""

    def __init__(self, turns: Policy) -> None:
        self._turns = turns
        self.requests: list[GenerationRequest] = []
        self.version = 5

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        await asyncio.sleep(0)
        self.version -= 1
        return tuple(self._completion(request, number) for number in range(request.n))

    def _completion(self, request: GenerationRequest, number: int) -> Completion:
        text = self._turns(request, number)
        whole = [*TOKENIZER.encode(text, add_special_tokens=False), END]
        ids = whole[: request.max_new_tokens]
        reason = "stop" if len(ids) == len(whole) else "length"
        logprobs = np.full(len(ids), -0.5, np.float32)
        return Completion(np.array(ids, np.int32), logprobs, text[: len(ids)], reason, self.version)


class Inline:
    """A scorer without processes."""

    def __init__(self, config: Config, given: Given) -> None:
        self._config = config
        self._functions = [(load_reward(f.function, given), f.weight) for f in config.rewards.functions]
        self.closed = False

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, Any]:
        texts, format = [c.text for c in completions], self._config.data.format
        scores = score_group(
            self._functions,
            completions=texts,
            answer=prompt.answer,
            prompt=prompt.text,
            format=format,
            columns=prompt.columns,
        )
        return scores, scores.by_function[:, -1] > 0

    def notices(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        self.closed = True


def request(n: int = 2, tokens: int = 64, seed: int = 11) -> GenerationRequest:
    return GenerationRequest(PROMPT.id, PROMPT.token_ids, n, SamplingParams(), tokens, seed)


def make(
    monkeypatch: pytest.MonkeyPatch,
    rollouts: Any,
    *overrides: str,
    prompt: Prompt = PROMPT,
    functions: Sequence[Callable[..., Any]] = (),
) -> Episodes:
    monkeypatch.setattr(module, "Host", InProcess)
    named = [f"{{function: {function.__name__}}}" for function in functions] or ["{function: environment}"]
    settings = ["environment.name=Counter", f"rewards.functions=[{', '.join(named)}]", *overrides]
    config = Config.load(None, settings)
    given = give(
        {("environment.name", "Counter"): Counter, **{("rewards.functions", f.__name__): f for f in functions}}
    )
    scorer: Any = Inline(config, given)
    return Episodes(config, [prompt], TOKENIZER, "", rollouts.generate, scorer, given)


def host_of(episodes: Episodes) -> InProcess:
    host: Any = episodes._host
    assert isinstance(host, InProcess)
    return host


def letter(request: GenerationRequest, number: int) -> str:
    """A turn that depends on the length of its prompt and on its place in the request."""
    return "abcdefgh"[(len(request.prompt_token_ids) + number) % 8]


# Tokens


def test_episode_has_every_token_as_the_policy_read_and_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = Rollouts(letter)
    first, second = run(make(monkeypatch, rollouts).generate(request()))
    for episode in (first, second):
        assert episode.observed is not None
        text = TOKENIZER.decode(episode.token_ids.tolist())
        turns = [turn.text for turn in episode.turns]
        assert len(turns) == 3
        said = [f"{turn}<|im_end|>" for turn in turns]
        assert text == said[0] + BETWEEN.format("turn 1") + said[1] + BETWEEN.format("turn 2") + said[2]
        wrote = [TOKENIZER.decode(episode.token_ids[turn.first : turn.end].tolist()) for turn in episode.turns]
        assert wrote == said
        mask = np.ones(len(episode.token_ids), np.bool_)
        for turn in episode.turns:
            mask[turn.first : turn.end] = False
        assert (episode.observed == mask).all()
        assert episode.policy_tokens == 6
        assert (episode.logprobs == np.where(mask, 0.0, -0.5)).all()
        assert (episode.finish_reason, episode.truncated, episode.text) == ("stop", False, turns[-1])
        assert [turn.observation for turn in episode.turns] == ["turn 1", "turn 2", ""]
        assert [turn.reward for turn in episode.turns] == [0.25] * 3
        assert {turn.tool for turn in episode.turns} == {"count"}


def test_each_turn_continues_the_tokens_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = Rollouts(letter)
    episodes = run(make(monkeypatch, rollouts).generate(request()))
    begin, *later = rollouts.requests
    assert (begin.n, begin.seed, len(begin.prompt_token_ids)) == (2, 11, len(PROMPT.token_ids))
    assert [each.n for each in later] == [1] * 4
    head = PROMPT.token_ids.tolist()
    whole = {(*head, *e.token_ids[: turn.first].tolist()) for e in episodes for turn in e.turns[1:]}
    assert {tuple(each.prompt_token_ids.tolist()) for each in later} == whole
    assert all(each.prompt_token_ids.dtype == np.int32 for each in later)


def test_weight_version_is_the_oldest_of_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = Rollouts(letter)
    (episode,) = run(make(monkeypatch, rollouts).generate(request(n=1)))
    assert episode.weight_version == rollouts.version == 2


# Seeds


def test_every_turn_has_its_own_seed_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds(number: int) -> list[int]:
        rollouts = Rollouts(letter)
        run(make(monkeypatch, rollouts).generate(request(n=4, seed=number)))
        return [each.seed for each in rollouts.requests]

    once, again, other = seeds(11), seeds(11), seeds(12)
    assert sorted(once) == sorted(again)
    assert len(set(once)) == 9
    assert not set(once) & set(other)
    assert all(0 <= seed < 2**31 for seed in once)


def test_environments_of_a_prompt_have_one_seed() -> None:
    assert environment_seed("p-1") == environment_seed("p-1") != environment_seed("p-2")


# Limits


def test_most_turns_end_an_episode_after_its_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    (episode,) = run(make(monkeypatch, Rollouts(letter), "environment.max_turns=2").generate(request(n=1)))
    assert (episode.finish_reason, episode.truncated, len(episode.turns)) == (MAX_TURNS, True, 2)
    assert episode.turns[-1].reward == 0.25 + 8.0
    assert episode.token_ids[-1] == END


def test_all_turns_share_the_token_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = Rollouts(lambda request, number: "abcd")
    (episode,) = run(make(monkeypatch, rollouts).generate(request(n=1, tokens=7)))
    assert [each.max_new_tokens for each in rollouts.requests] == [7, 2]
    assert (episode.finish_reason, episode.policy_tokens) == ("length", 7)
    assert episode.turns[-1].reward == 8.0, "the cut turn is no step, and the environment is asked for the end"


def test_one_turn_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = Rollouts(lambda request, number: "abc")
    overrides = ("environment.max_turn_tokens=4", "rollout.max_new_tokens=64")
    (episode,) = run(make(monkeypatch, rollouts, *overrides).generate(request(n=1)))
    assert [each.max_new_tokens for each in rollouts.requests] == [4, 4, 4]
    assert episode.finish_reason == "stop"


def test_episode_ends_before_an_observation_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = len(TOKENIZER.encode(BETWEEN.format("turn 1"), add_special_tokens=False))
    settings = f"environment.max_observation_tokens={2 * observed - 1}"
    (episode,) = run(make(monkeypatch, Rollouts(letter), settings).generate(request(n=1)))
    assert (episode.finish_reason, len(episode.turns)) == ("length", 2)
    assert int(episode.observed.sum()) == observed  # type: ignore[union-attr]
    assert [turn.observation for turn in episode.turns] == ["turn 1", ""]


@pytest.mark.parametrize("turn_tokens", ["null", "3"])
def test_no_request_is_longer_than_the_longest_episode(monkeypatch: pytest.MonkeyPatch, turn_tokens: str) -> None:
    """Each turn and each observation takes all that its limits leave."""
    rollouts = Rollouts(lambda request, number: "ab")
    observed = len(TOKENIZER.encode(BETWEEN.format("turn 1"), add_special_tokens=False))
    settings = ("rollout.max_new_tokens=8", f"environment.max_turn_tokens={turn_tokens}", "environment.max_turns=4")
    limit = f"environment.max_observation_tokens={2 * observed}"
    made = make(monkeypatch, rollouts, *settings, limit)
    run(made.generate(request(n=2, tokens=8)))
    config = Config.load(None, ["environment.name=Counter", *settings, limit])
    asked = [len(each.prompt_token_ids) + each.max_new_tokens for each in rollouts.requests]
    assert max(asked) == len(PROMPT.token_ids) + config.environment.longest(8)


# Scores


def seen(completions: list[str], episode_rewards: list[float], turns: list[Any], **context: Any) -> list[float]:
    return [len(each) + 10 * reward for each, reward in zip(turns, episode_rewards, strict=True)]


def test_reward_is_the_sum_over_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(monkeypatch, Rollouts(letter))
    scores, correct = run(made.score(PROMPT, run(made.generate(request()))))
    assert scores.rewards.tolist() == [0.75, 0.75]
    assert scores.error is None
    assert correct.tolist() == [True, True]


def test_functions_get_rewards_and_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(monkeypatch, Rollouts(letter), functions=[seen])
    scores, _ = run(made.score(PROMPT, run(made.generate(request()))))
    assert scores.rewards.tolist() == [10.5, 10.5]


def second_fails(request: GenerationRequest, number: int) -> str:
    return "raise" if number == 1 else letter(request, number)


def failed_group(monkeypatch: pytest.MonkeyPatch, policy: str) -> tuple[Episodes, tuple[Completion, ...]]:
    overrides = (f"rewards.on_error={policy}", "rewards.error_score=-3.0")
    made = make(monkeypatch, Rollouts(second_fails), *overrides)
    return made, run(made.generate(request(n=3)))


def test_failure_costs_its_own_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    made, completions = failed_group(monkeypatch, "score")
    assert [c.finish_reason for c in completions] == ["stop", FAILED, "stop"]
    assert "no step today" in completions[1].turns[-1].error
    scores, correct = run(made.score(PROMPT, completions))
    assert scores.rewards.tolist() == [0.75, -3.0, 0.75]
    assert np.isnan(scores.by_function[:, 0]).tolist() == [False, True, False]
    assert correct.tolist() == [True, False, True]
    assert scores.error is not None
    assert "no step today" in scores.error


def test_failure_drops_its_group_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    made, completions = failed_group(monkeypatch, "drop")
    scores, correct = run(made.score(PROMPT, completions))
    assert scores.error is not None
    assert np.isnan(scores.by_function).all()
    assert not correct.any()


def test_failure_stops_the_run_if_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    made, completions = failed_group(monkeypatch, "stop")
    with pytest.raises(ExtensionError, match=r"no step today.*; correct the environment"):
        run(made.score(PROMPT, completions))


def test_failure_of_reset_leaves_the_first_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Prompt(PROMPT.id, PROMPT.text, PROMPT.token_ids, "42", columns={"goal": 3, "broken": True})
    made = make(monkeypatch, Rollouts(letter), prompt=broken)
    completions = run(made.generate(request()))
    assert {c.finish_reason for c in completions} == {FAILED}
    assert all("no reset today" in c.turns[0].error and c.policy_tokens == 2 for c in completions)


def test_each_kind_of_failure_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = failed_group(monkeypatch, "score")
    (notice,) = made.notices()
    assert notice.startswith("environment of prompt p-1: no step today")
    assert "rewards.on_error=score" in notice
    run(made.generate(request(n=3)))
    assert made.notices() == ()


# Cancelling


def test_lost_request_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(Rollouts):
        async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
            if request.n == 1:
                raise RequestLostError("given up")
            return await super().generate(request)

    made = make(monkeypatch, Losing(letter))
    with pytest.raises(RequestLostError):
        run(made.generate(request()))
    assert host_of(made).open == 0


def test_slow_environment_holds_up_no_other_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second episode of the first group waits for ever; its siblings and another group end."""
    done = []

    class Noting(Rollouts):
        async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
            completions = await super().generate(request)
            done.append(request.n)
            return completions

    rollouts = Noting(lambda request, number: "wait" if request.seed == 1 and number == 1 else letter(request, number))

    async def work() -> list[tuple[Completion, ...]]:
        made = make(monkeypatch, rollouts)
        stuck = asyncio.create_task(made.generate(request(n=3, seed=1)))
        others = await asyncio.gather(*(made.generate(request(n=3, seed=seed)) for seed in (2, 3)))
        while done.count(1) < 2 * 3 * 2 + 2 * 2:  # two later turns of each episode that does not wait
            await asyncio.sleep(0)
        assert not stuck.done()
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        assert host_of(made).open == 0
        return list(others)

    assert {c.finish_reason for group in run(work()) for c in group} == {"stop"}


def test_thousands_of_turns_are_cancelled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of a step that has enough groups: every request is cancelled, and no session stays open."""
    waiting, cancelled = set[int](), list[int]()

    class Endless(Rollouts):
        async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
            if request.n > 1:
                return await super().generate(request)
            waiting.add(request.seed)
            try:
                return await asyncio.Event().wait()  # type: ignore[return-value]
            except asyncio.CancelledError:
                cancelled.append(request.seed)
                raise

    async def work() -> None:
        made = make(monkeypatch, Endless(letter))
        tasks = [asyncio.create_task(made.generate(request(n=8, seed=seed))) for seed in range(250)]
        while len(waiting) < 2000:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in ended} == {asyncio.CancelledError}
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (host_of(made).open, host_of(made).opened) == (0, 250)

    run(work())
    assert sorted(cancelled) == sorted(waiting)


def test_close_ends_processes_and_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(monkeypatch, Rollouts(letter))
    made.close()
    assert host_of(made).closed
    scorer: Any = made._scorer
    assert scorer.closed
