"""Ground truths that the reward functions do not pay for, which a run says before it starts."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.arithmetic import SYSTEM_PROMPT
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards.ground_truth import check_ground_truths, evenly
from adagrpo_ray.toy.tokenizer import build_tokenizer
from tests.support.scripted import CHATML, byte_tokenizer

TOKENIZER = build_tokenizer(Config().data.format)

MODULE = """
import time

def exactly(completions, answer, **context):
    return [float(text == answer) for text in completions]

def boxed(completions, answer, **context):
    return [float("boxed{" + answer in text) for text in completions]

def never(completions, **context):
    return [0.0 for _ in completions]

def nothing(completions, **context):
    return [None for _ in completions]

def forgets(completions, **context):
    return None

def texts(completions, **context):
    return ["1.0" for _ in completions]

def first(completions, **context):
    return [1.0]

def nan(completions, **context):
    return [float("nan") for _ in completions]

def some(completions, answer, **context):
    if answer == "1":
        raise ValueError("not this one")
    return [1.0 for _ in completions]

def slow(completions, **context):
    time.sleep(60)
    return [1.0 for _ in completions]

def slowly(completions, **context):
    time.sleep(0.4)
    return [1.0 for _ in completions]
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's functions, where the scoring processes find them."""
    (tmp_path / "own_scores.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_scores", raising=False)


def config_of(*functions: str, data: dict[str, Any] | None = None, **rewards: Any) -> Config:
    return Config.model_validate(
        {
            "rewards": {"functions": [{"function": name} for name in functions], **rewards},
            "data": {"eval_prompts": 0, "source": "d.jsonl", "system_prompt": SYSTEM_PROMPT, **(data or {})},
            "algorithm": {"prompts_per_step": 1},
        }
    )


def check(config: Config, *answers: object, tokenizer: Any = TOKENIZER, **more: Any) -> tuple[str, ...]:
    rows = [{"prompt": f"{i}+{i}", "solution": answer} for i, answer in enumerate(answers)]
    Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check_ground_truths(config, load_prompts(config, tokenizer).train, tokenizer, **more)


@pytest.mark.parametrize("names", [["exact"], ["latex"], ["format_exact", "format_approximate", "number", "answer"]])
def test_ground_truths_that_are_paid_for_bring_no_warning(names: list[str]) -> None:
    assert check(config_of(*names), "42", 5.0, 1e16, "1,000", "1/2", "Natalia sold 72.\n#### 72") == ()


def test_the_settings_for_one_gpu_count_each_way_to_write_a_number() -> None:
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
def test_a_built_in_function_that_counts_none_as_correct_ends_the_run(config: Config, words: list[str]) -> None:
    with pytest.raises(RewardError) as caught:
        check(config, "42", "43")
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def test_some_that_are_not_paid_for_are_a_warning_with_their_number() -> None:
    (notice,) = check(config_of("exact"), "42", "a SOLUTION_END_FLAG b", "43")
    assert notice.startswith("warning: rewards.functions: 'exact' counts 2 of 3 ground truths as correct")
    assert "'a SOLUTION_END_FLAG b'" in notice


def test_a_function_of_the_users_own_is_warned_of() -> None:
    (notice,) = check(config_of("own_scores:never"), "42", "43")
    assert "'own_scores:never' counts none of 2 ground truths as correct" in notice


@pytest.mark.parametrize("name", ["exactly", "boxed"])
def test_a_function_of_the_users_own_may_ask_for_another_format(name: str) -> None:
    assert check(config_of(f"own_scores:{name}"), "42", "43") == ()


def test_a_function_that_pays_for_none_is_named() -> None:
    notices = check(config_of("own_scores:nothing", "number", "exact"), "Paris", "Rome")
    assert "'own_scores:nothing' applies to none of 2 ground truths" in notices[0]
    assert "'number' pays for none of 2 ground truths" in notices[1]
    assert "scores -2.5" in notices[1]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("forgets", "returned None; return a list"),
        ("texts", "returned the score '1.0'"),
        ("first", "returned 1 scores for 3 completions"),
        ("nan", "returned the score nan"),
    ],
)
@pytest.mark.parametrize("on_error", ["drop", "score", "stop"])
def test_a_broken_contract_is_an_error(name: str, told: str, on_error: str) -> None:
    with pytest.raises(RewardError, match=rf"'own_scores:{name}' {told}.*of 2 prompts.*2 cannot be scored: change"):
        check(config_of(f"own_scores:{name}", on_error=on_error), "42", "43")


def test_some_that_cannot_be_scored_are_a_warning_or_as_on_error_says() -> None:
    (notice,) = check(config_of("own_scores:some"), "1", "2", "3")
    assert "raised ValueError('not this one')" in notice
    assert "of 3 prompts, tried with their own ground truth as the completion, 1 cannot be scored" in notice
    with pytest.raises(RewardError, match="1 cannot be scored: change the function"):
        check(config_of("own_scores:some", on_error="stop"), "1", "2", "3")


def test_a_function_that_hangs_costs_its_time_limit_once() -> None:
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"did not finish within rewards\.timeout_s=1;"):
        check(config_of("own_scores:slow", timeout_s=1.0), *range(9))
    assert time.monotonic() - began < 45


def test_a_slow_function_is_tried_as_long_as_one_group_may_take() -> None:
    with pytest.raises(RewardError, match=r"counts none of [2-5] ground truths"):
        check(config_of("own_scores:slowly", "exact", correct_above=1.0, timeout_s=1.0), *range(60))


def test_the_check_can_be_left_out_and_stopped() -> None:
    assert check(config_of("own_scores:forgets", check_prompts=0), "42") == ()
    stop = threading.Event()
    stop.set()
    assert check(config_of("own_scores:slow"), "42", stop=stop) == ()


def test_it_works_where_an_event_loop_runs_as_in_a_notebook() -> None:
    import asyncio

    async def cell() -> tuple[str, ...]:
        return check(config_of("exact"), "42")

    assert asyncio.run(cell()) == ()


def test_the_prompts_are_from_all_over() -> None:
    prompts: list[Any] = list(range(100))
    assert evenly(prompts, 3) == [0, 50, 99]
    assert evenly(prompts[:2], 64) == [0, 1]
    assert evenly(prompts, 0) == evenly([], 64) == []


def test_answers_longer_than_a_completion_are_told() -> None:
    config = config_of("exact").model_copy(
        update={"rollout": Config().rollout.model_copy(update={"max_new_tokens": 9})}
    )
    (notice,) = check(config, "42", "1234567890")
    assert "rollout.max_new_tokens=9 is less than 1 of 2 ground truths take in the asked format (13 tokens)" in notice


def test_answers_of_several_lines_are_told() -> None:
    (notice,) = check(config_of("exact"), "First we add.\nThen it is 42.")
    assert "data.columns.ground_truth='solution': 1 of 1 ground truths have several lines" in notice


CLOSED = CHATML.replace("assistant\n' }}", "assistant\n<think>\n\n</think>\n\n' }}")


def test_a_template_that_ends_the_thought_itself_is_told() -> None:
    tokenizer = byte_tokenizer(template=CLOSED)
    (notice,) = check(config_of("exact", "format_exact"), "42", tokenizer=tokenizer)
    assert "the chat template ends the thought in the prompt itself" in notice
    assert "format_exact pay only for completions that hold '</think>'" in notice
    assert check(config_of("exact"), "42", tokenizer=tokenizer) == ()
    assert check(config_of("format_exact"), "42", tokenizer=byte_tokenizer(template=CHATML)) == ()


def test_a_format_that_no_prompt_asks_for_is_told() -> None:
    (notice,) = check(config_of("latex", "exact", data={"system_prompt": None}), "42", "43")
    assert "exact pay only for an answer behind 'SOLUTION_START_FLAG'" in notice
    assert "none of 2 prompts asks for it: set data.system_prompt" in notice
    assert check(config_of("latex", data={"system_prompt": None}), "42") == ()


def test_markers_that_are_special_tokens_are_found(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>", "</think>", "<answer>", "</answer>"])
    format = {"answer_start": "<answer>", "answer_end": "</answer>"}
    assert check(config_of("format_exact", "exact", data={"format": format}), "42", tokenizer=tokenizer) == ()
