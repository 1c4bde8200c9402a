"""Tasks of reasoning-gym in the settings, and finding answers and code in completions, without the package."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adagrpo_ray.cards.sections import data_in_words
from adagrpo_ray.config import Config
from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.data import gym_tasks
from adagrpo_ray.data.gym_problems import GymProblem, _turns
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.evaluation.settings import COUNTING
from adagrpo_ray.rewards.ground_truth import check_ground_truths
from adagrpo_ray.rewards.gym import gym_answer, runs_code
from adagrpo_ray.toy.tokenizer import build_tokenizer
from tests.support.builders import make_prompt

FORMAT = FormatSettings()
T, S, E = FORMAT.think_end, FORMAT.answer_start, FORMAT.answer_end
GYM = ("data.source=reasoning_gym", "reasoning_gym.tasks=[{name: chain_sum}]")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (GYM[:1], ["reasoning_gym.tasks, which is empty", "{name: chain_sum}"]),
        ((*GYM, "reasoning_gym.tasks.0.weight=0"), ["reasoning_gym.tasks have weights that sum to 0"]),
        ((*GYM, "reasoning_gym.tasks.0.weight=-1"), ["reasoning_gym.tasks.0.weight=-1"]),
        ((*GYM, "reasoning_gym.tasks.0.wieght=1"), ["unknown key", "did you mean 'reasoning_gym.tasks.0.weight'"]),
        ((*GYM, "reasoning_gym.tasks.0.config.seed=1"), ["tasks.0.config.seed is set by reasoning_gym.seed"]),
        ((*GYM, "reasoning_gym.tasks.0.config.size=1"), ["tasks.0.config.size is set by data.train_prompts"]),
        (
            (GYM[0], "reasoning_gym.tasks=[{name: gcd}, {name: gcd, weight: 2}]"),
            ["reasoning_gym.tasks names 'gcd' twice with the same config"],
        ),
        (("rewards.functions=[{function: reasoning_gym}]",), ["'reasoning_gym' scores prompts of", "'arithmetic'"]),
    ],
)
def test_conflicting_settings_are_refused(overrides: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(None, overrides)
    assert all(word in str(caught.value) for word in words), caught.value


def test_resumed_run_and_results_must_keep_tasks() -> None:
    assert fixed_settings(Config.load(None, GYM))["reasoning_gym.tasks"] != []
    assert "reasoning_gym" in COUNTING


def test_source_is_no_hub_name() -> None:
    assert "reasoning-gym" in data_in_words(Config.load(None, GYM))
    assert "huggingface.co" not in data_in_words(Config.load(None, GYM))


def test_error_without_package_names_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym_tasks, "PACKAGE", "no_such_package_here")
    with pytest.raises(ConfigError, match=r"needs the package reasoning-gym .*pip install 'adagrpo_ray\[real\]'"):
        gym_tasks.make_dataset("chain_sum", {})


def test_tasks_take_turns_by_their_weights() -> None:
    turns = list(_turns([2.0, 0.0, 1.0, 1.0], 400))
    assert [turns.count(place) for place in range(4)] == [200, 0, 100, 100]
    for some in range(1, 400):
        assert abs(turns[:some].count(0) - some / 2) <= 1
    assert turns[:100] == list(_turns([2.0, 0.0, 1.0, 1.0], 100))


def test_examples_are_turns_before_the_question() -> None:
    entry = {"question": "q", "answer": "a", "metadata": {}}
    problem = GymProblem("gcd", {}, "gcd", entry, (("e", "1"), ("f", "2")))
    assert [(m["role"], m["content"]) for m in problem.messages] == [
        *(("user", "e"), ("assistant", "1")),
        *(("user", "f"), ("assistant", "2")),
        ("user", "q"),
    ]


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        (" 12 \n", "12"),
        (f"thought{T} 12", "12"),
        (f"<answer>1</answer>{T}12", "12"),
        (f"{S} 7 {E} and 12", "7"),
        (f"<answer>5</answer> {S}7{E}", "7"),
        ("so <answer>5</answer>, no, <answer>\n 6 </answer>.", "6"),
        ("<answer>5", "<answer>5"),
        ("", ""),
    ],
)
def test_answer_in_completion_is_found(completion: str, found: str) -> None:
    assert gym_answer(completion, FORMAT) == found


@pytest.mark.parametrize(
    ("task", "answer", "code"),
    [
        ("spiral_matrix", "1 2 3", False),
        ("spiral_matrix", "[1, (2, 3)]", False),
        ("spiral_matrix", "[print(1)]", True),
        ("n_queens", "__import__('os').abort()", True),
        ("countdown", "(3 + 4) * 2.5 - 1 / 2", False),
        ("countdown", "exit()", True),
        ("countdown", "().__class__", True),
        ("simple_integration", "2*X**2 + sin(3*X)/4 + C", False),
        ("simple_integration", "preview(X)", True),
        ("simple_integration", "X.free_symbols", True),
        ("simple_integration", "open('x')", True),
        ("polynomial_multiplication", "60*x**2*y - 10", False),
        ("puzzle24", "[1]", True),
        ("chain_sum", "exit()", False),  # which evaluates nothing
    ],
)
def test_answers_that_verifier_would_run_as_code_are_detected(task: str, answer: str, code: bool) -> None:
    assert runs_code(task, answer) is code


def test_prompts_without_answer_are_not_checked() -> None:
    config = Config.model_validate(
        {
            "data": {"source": "reasoning_gym"},
            "reasoning_gym": {"tasks": [{"name": "graph_color"}]},
            "rewards": {"functions": [{"function": "reasoning_gym"}]},
        }
    )
    assert check_ground_truths(config, [replace(make_prompt(), answer="")], build_tokenizer(FORMAT)) == ()
