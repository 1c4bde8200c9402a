"""Episodes in the batch, in the metrics, in checkpoints and in samples; lengths are those of the policy's tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.runs.group_codec import arrays_of, group_of, plain_group
from adagrpo_ray.runs.sample_text import group_text
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.sampling_metrics import SamplingMetrics
from adagrpo_ray.sampling.batch import broken_samples, training_samples
from adagrpo_ray.sampling.metrics import sampling_metrics
from adagrpo_ray.sampling.sample_table import group_samples
from adagrpo_ray.types import MAX_TURNS, Completion, Group, TrainSample, Turn
from tests.support.builders import NOTHING, make_attempt, make_completion, make_episode, make_group

# Two tokens of the policy, two observed ones, one of the policy: P is 3 and T is 5.
EPISODE = make_episode((2, 2), (1, 0))
PLAIN = make_completion(1, "no")


def group_of_two(first: Completion = EPISODE, second: Completion = PLAIN) -> Group:
    """A group whose two completions have rewards 1 and 0."""
    return make_group(replace(make_attempt([1, 0]), completions=(first, second)))


def samples_of(kind: str, **loss: Any) -> tuple[TrainSample, ...]:
    settings = AlgorithmSettings.model_validate({"loss": {"kind": kind, **loss}})
    return training_samples([group_of_two()], settings, max_new_tokens=10)


# --- the batch


@pytest.mark.parametrize(
    ("kind", "episode", "plain"),
    [
        ("bnpo", 1 / 4, 1 / 4),
        ("dapo", 1 / 4, 1 / 4),
        ("cispo", 1 / 4, 1 / 4),
        ("grpo", 1 / 6, 1 / 2),
        ("gspo", 1 / 6, 1 / 2),
        ("dr_grpo", 1 / 20, 1 / 20),
    ],
)
def test_token_weights_count_tokens_of_the_policy(kind: str, episode: float, plain: float) -> None:
    first, second = samples_of(kind)
    assert first.token_weights.tolist() == pytest.approx([episode, episode, 0, 0, episode])
    assert second.token_weights.tolist() == pytest.approx([plain])
    assert (first.policy_tokens, second.policy_tokens) == (3, 1)
    assert first.observed is EPISODE.observed
    assert second.observed is None


def test_values_of_observed_tokens_are_left_out_of_a_sample() -> None:
    first, second = samples_of("bnpo")
    assert first.written(first.token_ids).tolist() == [0, 1, 4]
    assert first.written(first.behaviour_logprobs).tolist() == [-0.5] * 3
    assert second.written(second.token_ids) is second.token_ids


def test_episode_without_tokens_of_the_policy_is_left_out() -> None:
    settings = AlgorithmSettings.model_validate({"loss": {"kind": "bnpo"}})
    samples = training_samples([group_of_two(make_episode((0, 4)))], settings, max_new_tokens=10)
    assert [len(sample.token_ids) for sample in samples] == [1]


def test_episode_that_the_turn_limit_ended_is_truncated() -> None:
    cut = replace(EPISODE, finish_reason=MAX_TURNS)
    settings = AlgorithmSettings.model_validate({"loss": {"kind": "bnpo", "mask_truncated_completions": True}})
    (sample,) = training_samples([group_of_two(cut)], settings, max_new_tokens=10)
    assert sample.token_ids is PLAIN.token_ids


def test_broken_episode_keeps_its_mask() -> None:
    logprobs = EPISODE.logprobs.copy()
    logprobs[4] = np.nan
    (sample,) = broken_samples([group_of_two(replace(EPISODE, logprobs=logprobs))])
    assert sample.token_weights.tolist() == [0.0] * 5
    assert np.isnan(sample.written(sample.behaviour_logprobs)).tolist() == [False, False, True]


def test_generated_tokens_are_those_of_the_policy() -> None:
    assert (EPISODE.policy_tokens, PLAIN.policy_tokens, make_episode((0, 4)).policy_tokens) == (3, 1, 0)
    assert group_of_two().last.generated_tokens == group_of_two().generated_tokens == 4


# --- metrics


def metrics_of(*groups: Group) -> SamplingMetrics:
    return sampling_metrics(
        2, replace(NOTHING, attempts=groups), ["f"], 0, AlgorithmSettings(), exhausted_dropped=False
    )


def test_metrics_of_episodes_count_turns_tokens_and_tools() -> None:
    failed = make_episode((3, 4), (2, 1), (4, 0), finish_reason=MAX_TURNS, tool="search", error="no such page")
    step = metrics_of(group_of_two(EPISODE, failed), group_of_two(replace(EPISODE, finish_reason="length"), PLAIN))
    assert step.episodes_turns_mean == pytest.approx((2 + 3 + 2) / 3)
    assert step.episodes_length_mean == pytest.approx((5 + 14 + 5) / 3)
    assert step.episodes_observed_tokens == 2 + 5 + 2
    assert step.episodes_clipped_ratio == pytest.approx(1 / 3)
    assert (step.tools_calls, step.tools_errors) == (1, 1)


def test_lengths_and_generated_tokens_are_those_of_the_policy() -> None:
    step = metrics_of(group_of_two())
    assert step.completions_mean_length == step.completions_mean_terminated_length == pytest.approx((3 + 1) / 2)
    assert step.generated_tokens == 4


def test_metrics_of_episodes_are_none_without_turns() -> None:
    for step in (metrics_of(make_group([1, 0])), metrics_of()):
        values = [value for name, value in step.to_dict().items() if name.startswith(("episodes_", "tools_"))]
        assert values == [None] * 6


# --- checkpoints and samples


def stored(completion: Completion) -> Completion:
    """The completion after a checkpoint's JSON and arrays."""
    group = group_of_two(completion)
    plain = json.loads(json.dumps(plain_group(group)))
    return group_of(plain, arrays_of(group, "0"), "0", group.prompt).last.completions[0]


@pytest.mark.parametrize(
    "observed", [None, [], [0], [1], [0, 0], [1, 1], [0, 1, 1, 0], [1, 0, 1, 0, 0, 1, 1], [0] * 9 + [1] * 9]
)
def test_masks_are_restored(observed: list[int] | None) -> None:
    mask = None if observed is None else np.array(observed, np.bool_)
    found = stored(replace(make_completion(len(observed or [])), observed=mask)).observed
    if mask is None:
        assert found is None
    else:
        assert found is not None
        assert (found.dtype, found.tolist()) == (np.bool_, mask.tolist())


def test_turns_are_restored() -> None:
    turns = (
        Turn(0, 2, "call", 'tool\'s\n"result" \ud800', -0.1, "search", "late"),
        Turn(4, 5, "end", reward=None),
    )
    assert stored(replace(EPISODE, turns=turns)).turns == turns


def test_mask_is_stored_as_the_places_at_which_it_changes() -> None:
    arrays = arrays_of(group_of_two(), "0")
    assert arrays["0.0.0.observed"].tolist() == [2, 4]
    assert "0.0.1.observed" not in arrays


def test_groups_without_episodes_are_stored_as_before() -> None:
    group = make_group([1, 0])
    assert {*plain_group(group)["attempts"][0]["completions"][0]} == {"text", "finish_reason", "weight_version"}
    assert not any(name.endswith("observed") for name in arrays_of(group, "0"))


def shown(group: Group) -> GroupSample:
    (sample,) = group_samples(
        3, replace(NOTHING, ready=(group,)), ["f"], AlgorithmSettings(), 1, exhausted_dropped=False
    )
    return sample


def test_samples_of_episodes_are_written_and_read_back() -> None:
    surrogate = replace(EPISODE, turns=(replace(EPISODE.turns[0], observation="half \ud800"), EPISODE.turns[1]))
    sample = shown(group_of_two(surrogate))
    episode, plain = sample.attempts[0].completions
    assert (episode.tokens, episode.observed_tokens) == (3, 2)
    assert [(turn.first, turn.end, turn.observation) for turn in episode.turns] == [(0, 2, "half \ufffd"), (4, 5, "")]
    assert (plain.tokens, plain.observed_tokens, plain.turns) == (1, 0, ())
    line = json.dumps(sample.to_dict())
    again = GroupSample.from_dict(json.loads(line))
    assert again == sample
    assert json.dumps(again.to_dict()) == line


def test_samples_without_episodes_have_no_keys_of_episodes() -> None:
    completions = shown(make_group([1, 0])).to_dict()["attempts"][0]["completions"]  # type: ignore[index]
    assert not {"observed_tokens", "turns"} & {*completions[0]}


def test_text_for_tensorboard_shows_the_turns() -> None:
    episode = make_episode((2, 2), (1, 0), reward=0.5, tool="add", error="no number")
    text = group_text(shown(group_of_two(episode)))
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert lines[1:] == [
        *("[turn 1]", "text 1", "[observed]", "observation 1"),
        *("[turn 2, calls add, reward 0.5]", "text 2", "[error: no number]"),
    ]
