"""The check before a run starts that the reward functions reward the ground truths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.config.rewards import RewardSettings, RewardsSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards.ground_truth import evenly
from tests.support.ground_truths import check, config_of
from tests.support.scripted import CHATML, byte_tokenizer
from tests.support.served_models import entry, judge


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("names", [["exact"], ["format_exact", "format_approximate", "number", "answer"]])
def test_rewarded_ground_truths_give_no_warning(names: list[str]) -> None:
    assert check(config_of(*names), "42", 5.0, 1e16, "1,000", "1/2", "Natalia sold 72.\n#### 72") == ()


def test_one_gpu_settings_accept_all_spellings_of_a_number() -> None:
    config = config_of("format_exact", "answer", correct_by="answer", correct_above=3.0)
    assert check(config, "42", "1,000", 0.5, "$5", r"so \boxed{7}") == ()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            config_of("exact", correct_above=1.0),
            ["'exact' counts none of 2", "correct_above=1", "scores 1", "</think>"],
        ),
        (config_of("exact", data={"format": {"answer_end": "</think>"}}), ["'exact' counts none of 2", "data.format"]),
        (config_of("exact", data={"format": {"answer_start": "«"}}), ["'exact' counts none of 2", "tokenizer"]),
        (
            config_of("format_approximate", data={"format": {"answer_start": "|", "answer_end": "|"}}),
            ["'format_approximate' counts none", "scores -1.5"],
        ),
    ],
)
def test_built_in_function_without_correct_ground_truth_is_an_error(config: Config, words: list[str]) -> None:
    with pytest.raises(RewardError) as caught:
        check(config, "42", "43")
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def test_some_incorrect_ground_truths_are_a_warning_with_count() -> None:
    (notice,) = check(config_of("exact"), "42", "a SOLUTION_END_FLAG b", "43")
    assert notice.startswith("warning: rewards.functions: 'exact' counts 2 of 3 ground truths as correct")
    assert "'a SOLUTION_END_FLAG b'" in notice


def test_check_works_inside_running_event_loop() -> None:
    import asyncio

    async def cell() -> tuple[str, ...]:
        return check(config_of("exact"), "42")

    assert asyncio.run(cell()) == ()


def test_prompts_are_spread_evenly() -> None:
    prompts: list[Any] = list(range(100))
    assert evenly(prompts, 3) == [0, 50, 99]
    assert evenly(prompts[:2], 64) == [0, 1]
    assert evenly(prompts, 0) == evenly([], 64) == []


def test_ground_truths_longer_than_completion_are_a_warning() -> None:
    config = config_of("exact").model_copy(
        update={"rollout": Config().rollout.model_copy(update={"max_new_tokens": 9})}
    )
    (notice,) = check(config, "42", "1234567890")
    assert (
        "rollout.max_new_tokens=9 is less than 1 of 2 ground truths need in the format of data.format (13 tokens)"
        in notice
    )


def test_ground_truths_of_several_lines_are_a_warning() -> None:
    (notice,) = check(config_of("exact"), "First we add.\nThen it is 42.")
    assert "data.columns.ground_truth='solution': 1 of 1 ground truths have several lines" in notice


CLOSED = CHATML.replace("assistant\n' }}", "assistant\n<think>\n\n</think>\n\n' }}")


def test_template_that_ends_thought_is_a_warning() -> None:
    tokenizer = byte_tokenizer(template=CLOSED)
    (notice,) = check(config_of("exact", "format_exact"), "42", tokenizer=tokenizer)
    assert "the chat template ends the thought in the prompt itself" in notice
    assert "format_exact reward only completions with '</think>'" in notice
    assert check(config_of("exact"), "42", tokenizer=tokenizer) == ()
    assert check(config_of("format_exact"), "42", tokenizer=byte_tokenizer(template=CHATML)) == ()


def test_markers_that_are_special_tokens_are_found(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>", "</think>", "<answer>", "</answer>"])
    format = {"answer_start": "<answer>", "answer_end": "</answer>"}
    assert check(config_of("format_exact", "exact", data={"format": format}), "42", tokenizer=tokenizer) == ()


def test_judges_are_not_asked_about_ground_truths() -> None:
    """Nothing listens at their addresses: a request would be an error."""
    asked = entry(judge(base_url="http://127.0.0.1:9/v1"))

    def of(*functions: RewardSettings, **more: Any) -> Config:
        return config_of("exact").model_copy(update={"rewards": RewardsSettings(functions=functions, **more)})

    exact = RewardSettings(function="exact")
    assert check(of(exact, asked), "42") == ()
    assert check(of(asked), "42") == ()
    for right in (of(asked, exact, correct_above=1.0), of(exact, asked, correct_by="exact", correct_above=1.0)):
        with pytest.raises(RewardError, match="'exact' counts none of 1 ground truths"):
            check(right, "42")
    assert check(of(exact, asked, correct_above=1.0), "42") == (), "the judge decides"
