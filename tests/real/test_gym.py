"""Problems of reasoning-gym on the package itself: all of its tasks, from the settings to the score."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra real")

from adagrpo_ray.config import Config
from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.reasoning_gym import ReasoningGymSettings
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.data import gym_problems as source
from adagrpo_ray.data.gym_problems import GymProblem, generate, problem_rows
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.data.prompts import PromptSets, load_prompts
from adagrpo_ray.data.row_id import normalised
from adagrpo_ray.errors import ConfigError, DataError, RewardError
from adagrpo_ray.rewards.ground_truth import check_ground_truths
from adagrpo_ray.rewards.gym import reasoning_gym
from adagrpo_ray.rewards.scorer import RewardScorer
from adagrpo_ray.toy.tokenizer import build_tokenizer
from adagrpo_ray.types import Completion, Prompt

FORMAT = FormatSettings()
TOKENIZER = build_tokenizer(FORMAT)
ACCEPT_MANY = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Tasks that give no answer of their own, since many answers are correct."""
TAKE_ANYTHING = {"game_of_life_halting"}
"""Tasks whose verifier reads each text that is not "True" as "False", and so gives rewards for texts without answer."""
EACH = 3
SUMS = {"name": "chain_sum", "config": {"max_terms": 3}}


def settings(*tasks: dict[str, Any], **more: Any) -> ReasoningGymSettings:
    return ReasoningGymSettings.model_validate({"tasks": list(tasks), **more})


def config_of(*tasks: dict[str, Any], gym: dict[str, Any] | None = None, **sections: Any) -> Config:
    tree: dict[str, Any] = {
        "data": {"source": "reasoning_gym", "train_prompts": 24, "eval_prompts": 8},
        "reasoning_gym": {"tasks": list(tasks), **(gym or {})},
        "rewards": {"functions": [{"function": "reasoning_gym"}], "correct_above": 0.99},
        "algorithm": {"prompts_per_step": 2},
    }
    return Config.model_validate({**tree, **sections})


def load(*tasks: dict[str, Any], gym: dict[str, Any] | None = None, **sections: Any) -> PromptSets:
    return load_prompts(config_of(*tasks, gym=gym, **sections), TOKENIZER)


def score(problem: GymProblem, *completions: str) -> list[float]:
    return reasoning_gym(list(completions), format=FORMAT, columns=problem.columns)


# --- all tasks

ALL = f"""
import hashlib, sys
from reasoning_gym.factory import DATASETS
from adagrpo_ray.config.reasoning_gym import ReasoningGymSettings
from adagrpo_ray.data.gym_problems import problem_rows

names = sorted(set(DATASETS) - {{"composite"}})
tasks = ReasoningGymSettings.model_validate({{"tasks": [{{"name": name}} for name in names], "seed": 3}})
problems, _ = problem_rows(tasks, {EACH} * len(names), 0)
for problem in problems:
    print(problem.task, hashlib.sha256(repr(problem).encode(errors="surrogatepass")).hexdigest())
"""


@pytest.fixture(scope="module")
def problems() -> tuple[GymProblem, ...]:
    """`EACH` problems of each task of the package."""
    from reasoning_gym.factory import DATASETS

    names = sorted(set(DATASETS) - {"composite"})
    return problem_rows(settings(*({"name": name} for name in names), seed=3), EACH * len(names), 0)[0]


@pytest.mark.slow
def test_every_task_gives_the_same_problems_in_every_process(problems: tuple[GymProblem, ...]) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", ALL], env=environment, capture_output=True, text=True, check=True)
    digests = (hashlib.sha256(repr(problem).encode(errors="surrogatepass")).hexdigest() for problem in problems)
    here = [f"{problem.task} {digest}" for problem, digest in zip(problems, digests, strict=True)]
    assert set(done.stdout.splitlines()) ^ set(here) == set()
    assert len({problem.task for problem in problems}) > 100


@pytest.mark.slow
def test_the_answer_of_every_task_is_correct_in_a_scoring_process(problems: tuple[GymProblem, ...]) -> None:
    rewards = {"functions": [{"function": "reasoning_gym"}], "correct_above": 0.99, "on_error": "stop"}
    scorer = RewardScorer(RewardsSettings.model_validate(rewards), FORMAT)

    async def scored() -> dict[str, list[list[float]]]:
        found: dict[str, list[list[float]]] = {}
        for number, problem in enumerate(problems):
            answer = str(problem.entry["answer"] or "")
            prompt = Prompt(str(number), "?", np.zeros(1, np.int32), answer, problem.difficulty, problem.columns)
            marked = f"thought{FORMAT.think_end}{FORMAT.answer_start}{answer}{FORMAT.answer_end}"
            texts = [answer, f" {answer}\n", marked, f"It is <answer>{answer}</answer>", "no answer", "", "(", "[1"]
            scores, _ = await scorer.score(prompt, [completion(text) for text in texts])
            found.setdefault(problem.task, []).append(scores.rewards.tolist())
        return found

    try:
        found = asyncio.run(scored())
    finally:
        scorer.close()
    own = {task: [row[:4] for row in rows] for task, rows in found.items() if task not in ACCEPT_MANY}
    assert {task: rows for task, rows in own.items() if rows != [[1.0] * 4] * EACH} == {}
    empty = {problem.task for problem in problems if problem.entry["answer"] == ""}
    assert empty <= {"ab"}  # whose systems may leave nothing
    wrong = {task: [row[4:] for row in rows] for task, rows in found.items() if task not in empty | TAKE_ANYTHING}
    assert {task: rows for task, rows in wrong.items() if not all(0 <= s < 1 for row in rows for s in row)} == {}
    assert {problem.task for problem in problems if problem.entry["answer"] is None} == ACCEPT_MANY


@pytest.mark.slow
def test_no_verifier_changes_the_problem_that_it_scores(problems: tuple[GymProblem, ...]) -> None:
    for problem in problems:
        before = pickle.dumps(problem.entry)
        first = score(problem, "1", str(problem.entry["answer"]), "[[1]]")
        assert pickle.dumps(problem.entry) == before, problem.task
        assert score(problem, "1", str(problem.entry["answer"]), "[[1]]") == first, problem.task


def completion(text: str) -> Completion:
    return Completion(np.zeros(1, np.int32), np.zeros(1, np.float32), text, "stop", weight_version=0)


# --- from settings to prompts


def test_prompts_have_question_answer_and_columns_for_the_reward() -> None:
    (prompt, *_) = load(SUMS).train
    assert prompt.text == prompt.columns["entry"]["question"]  # type: ignore[index]
    assert prompt.answer == prompt.columns["entry"]["answer"]  # type: ignore[index]
    assert (prompt.difficulty, prompt.columns["task"], prompt.columns["task_config"]) == (
        "chain_sum",
        "chain_sum",
        {"max_terms": 3},
    )


def test_the_seed_changes_the_training_prompts_and_not_the_held_out_ones() -> None:
    tasks = (SUMS, {"name": "word_ladder", "weight": 0.5})
    first, again = load(*tasks), load(*tasks)
    ids = [prompt.id for prompt in first.train]
    assert ids == [prompt.id for prompt in again.train]
    more = load(*tasks, data={"source": "reasoning_gym", "train_prompts": 40, "eval_prompts": 8})
    assert [p.id for p in more.held_out] == [p.id for p in first.held_out]
    assert [p.id for p in more.train][:24] == ids
    assert [p.id for p in load(*tasks, run={"seed": 5}).train] == ids
    assert not {p.id for p in load(*tasks, gym={"seed": 1}).train} & set(ids)
    assert {normalised(p.text) for p in first.train}.isdisjoint(normalised(p.text) for p in first.held_out)


def test_a_resumed_run_continues_with_the_next_prompt() -> None:
    order = PromptOrder(load(SUMS).train, 0, shuffle=True)
    order.take(10)
    resumed = PromptOrder(load(SUMS).train, 0, shuffle=True)
    resumed.load_state_dict(json.loads(json.dumps(order.state_dict())))
    assert [p.id for p, _ in resumed.take(30)] == [p.id for p, _ in order.take(30)]


def test_task_weights_are_shares_of_both_sets() -> None:
    sets = load(SUMS, {"name": "gcd", "weight": 3.0}, {"name": "lcm", "weight": 0.0})
    assert Counter(prompt.difficulty for prompt in sets.train) == {"chain_sum": 6, "gcd": 18}
    assert Counter(prompt.difficulty for prompt in sets.held_out) == {"chain_sum": 2, "gcd": 6}


def test_difficulty_classes_come_from_the_settings() -> None:
    easy, hard = {"max_terms": 2, "max_digits": 1}, {"max_terms": 2, "max_digits": 3}
    tasks = ({"name": "chain_sum", "config": easy}, {"name": "chain_sum", "config": hard}, {"name": "gcd"})
    assert {p.difficulty for p in generate(settings(*tasks), 6)} == {
        *("chain_sum max_digits=1", "chain_sum max_digits=3", "gcd")
    }
    by_terms = generate(settings({**SUMS, "difficulty": "num_terms"}), 30)
    assert {p.difficulty for p in by_terms} == {"chain_sum num_terms=2", "chain_sum num_terms=3"}
    assert all(p.difficulty.endswith(str(p.entry["metadata"]["num_terms"])) for p in by_terms)


def test_no_question_occurs_in_two_tasks() -> None:
    narrow = [{"name": "chain_sum", "config": {"max_terms": 2, "max_digits": n}} for n in (1, 2)]
    problems = generate(settings(*narrow), 200)
    assert len({problem.entry["question"] for problem in problems}) == 200


def test_examples_are_not_among_the_problems() -> None:
    problems = generate(settings(SUMS, {"name": "gcd"}, examples=2), 40)
    shown = {question for problem in problems for question, _ in problem.examples}
    assert len(shown) == 4
    assert shown.isdisjoint(problem.entry["question"] for problem in problems)
    (prompt, *_) = load(SUMS, gym={"examples": 1}).train
    text = str(TOKENIZER.decode(prompt.token_ids.tolist()))
    assert text.count("State the final answer") == 2
    assert text.rstrip().endswith("<|im_start|>assistant")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"name": "chain_sums"}, ["reasoning_gym.tasks.0.name='chain_sums'", "did you mean 'chain_sum'?"]),
        ({"name": "composite"}, ["'composite' is no task"]),
        (
            {"name": "chain_sum", "config": {"max_term": 2}},
            ["reasoning_gym.tasks.0.config.max_term=2: chain_sum has no such setting; did you mean 'max_terms'?"],
        ),
        (
            {"name": "chain_sum", "config": {"max_terms": "two"}},
            ["reasoning_gym.tasks.0.config.max_terms='two': chain_sum takes a value of type int, such as 6"],
        ),
        ({"name": "chain_sum", "config": {"max_terms": True}}, ["config.max_terms=True", "type int"]),
        (
            {"name": "chain_sum", "config": {"max_terms": 4, "min_digits": 0}},
            ["reasoning_gym.tasks.0.config.min_digits=0: chain_sum refuses it: min_digits must be positive"],
        ),
        ({"name": "lcm", "weight": 0, "config": {"zzz": 1}}, ["config.zzz=1: lcm has no such setting; it has"]),
    ],
)
def test_wrong_tasks_and_settings_are_named(task: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        generate(settings(task), 0)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_error_of_the_generating_process_is_raised_here() -> None:
    with pytest.raises(ConfigError, match="did you mean 'chain_sum'"):
        load({"name": "chain_sums"})


def test_a_generating_process_that_dies_raises_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.pickle, "dumps", lambda _: b"no pickle")
    with pytest.raises(DataError, match=r"process that generates problems ended with exit code 1 \(.*UnpicklingError"):
        problem_rows(settings(SUMS), 1, 0)


def test_a_task_with_too_few_problems_is_named() -> None:
    sums = {"name": "chain_sum", "config": {"max_terms": 2, "max_digits": 1}}
    with pytest.raises(DataError, match=r"tasks\.0: chain_sum gave \d+ different problems in \d+ draws"):
        generate(settings(sums), 500)


def test_a_task_without_problems_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LONGEST_S", 1)
    endless = {"name": "base_conversion", "config": {"max_base": 2}}
    with pytest.raises(DataError, match=r"tasks\.0: base_conversion took more than 1 s for one problem"):
        generate(settings(endless), 1)


@pytest.mark.parametrize(
    ("task", "gym", "words"),
    [
        (
            {"name": "gcd", "difficulty": "nothing"},
            {},
            r"difficulty='nothing': the metadata of gcd have no such entry; they",
        ),
        ({"name": "gcd", "difficulty": "numbers"}, {}, r"difficulty='numbers': the metadata of gcd hold a list there"),
        ({"name": "chain_sum", "difficulty": "expression"}, {}, r"difficulty='expression' makes 20 difficulty classes"),
        ({"name": "rush_hour"}, {"examples": 1}, r"reasoning_gym\.examples: rush_hour \(.*\) gives no answer to show"),
    ],
)
def test_impossible_difficulties_and_examples_are_refused(
    task: dict[str, Any], gym: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        generate(settings(task, **gym), 20)


# --- the reward


def test_partial_scores_are_kept() -> None:
    (problem,) = generate(settings(SUMS), 1)
    truth = problem.entry["answer"]
    correct, near, wrong = score(problem, truth, f"the answer is {truth}", "none")
    assert (correct, wrong) == (1.0, 0.0)
    assert 0.0 < near < 0.3


def test_a_verifier_that_fails_on_a_completion_gives_no_reward() -> None:
    (problem,) = generate(settings({"name": "prime_factorization"}), 1)
    assert score(problem, "zzz", problem.entry["answer"]) == [0.0, 1.0]


def test_a_verifier_that_always_fails_is_an_error() -> None:
    broken = GymProblem("prime_factorization", {}, "", {"question": "?", "metadata": {}, "answer": "zzz"})
    with pytest.raises(RewardError, match=r"the verifier of prime_factorization raised .* for its own answer"):
        score(broken, "2")


def test_code_in_an_answer_does_not_run(tmp_path: Any) -> None:
    planted = tmp_path / "planted"
    for name in ("spiral_matrix", "countdown", "simple_integration"):
        (problem,) = generate(settings({"name": name}), 1)
        code = f"[open({str(planted)!r}, 'w')]"
        assert score(problem, code, f"open({str(planted)!r}, 'w')") == [0.0, 0.0]
    assert not planted.exists()


def test_ground_truths_are_checked_before_the_start() -> None:
    tasks = (SUMS, {"name": "spiral_matrix"}, {"name": "graph_color"})
    config = config_of(*tasks, rollout={"max_new_tokens": 512})
    prompts = load_prompts(config, TOKENIZER)
    assert any(not prompt.answer for prompt in prompts.train)
    assert check_ground_truths(config, prompts.train, TOKENIZER) == ()


def test_partial_scores_that_count_as_correct_are_a_warning() -> None:
    config = config_of(SUMS, rewards={"functions": [{"function": "reasoning_gym"}]})
    (warning,) = check_ground_truths(config, load_prompts(config, TOKENIZER).train, TOKENIZER)
    assert "rewards.correct_above=0: 'reasoning_gym' gives a part of 1.0 to some wrong answers" in warning


def test_nothing_is_correct_above_the_best_score() -> None:
    rewards = {"functions": [{"function": "reasoning_gym"}], "correct_above": 1.0}
    config = config_of(SUMS, rewards=rewards)
    with pytest.raises(RewardError, match="'reasoning_gym' counts none of 24 ground truths as correct"):
        check_ground_truths(config, load_prompts(config, TOKENIZER).train, TOKENIZER)
