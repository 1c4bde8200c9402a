"""Prompts of episodes before the start: rows of environments, resets, tools and checks. Sessions run in-process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.lengths import longest_sequence
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.environments import opening as module
from adagrpo_ray.environments.opening import load_episode_prompts
from adagrpo_ray.errors import ConfigError, DataError
from adagrpo_ray.extensions.given import give
from tests.support.in_process import InProcess
from tests.support.scripted import ASKS, tokenizer_of
from tests.support.templates import templated
from tests.support.tools import add

TOKENIZER = tokenizer_of()


class Made:
    """Has rows, and the messages that its argument selects."""

    resets: list[tuple[dict[str, Any], int]] = []  # noqa: RUF012

    def __init__(self, gives: str = "nothing") -> None:
        self.gives = gives

    def rows(self) -> list[dict[str, Any]]:
        return [{"prompt": f"row {n}", "solution": str(n), "name": f"n{n}"} for n in range(6)]

    def reset(self, row: Mapping[str, Any], seed: int) -> Any:
        type(self).resets.append((dict(row), seed))
        if self.gives == "fails":
            raise ValueError("no reset today")
        return None if self.gives == "nothing" else f"{self.gives} {row['name']}"

    def step(self, message: Mapping[str, Any]) -> Any:
        return [], 0.0, True, {}


GIVEN = give({("environment.name", "Made"): Made, ("environment.tools", "add"): add})


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    Made.resets.clear()
    monkeypatch.setattr(module, "Host", InProcess)
    monkeypatch.setattr("tests.support.in_process.load", lambda setup: loaded(setup))


def loaded(setup: Any) -> Any:
    """`fork_server.load`, with the class of this module itself, so that it keeps its list of resets."""
    from dataclasses import replace

    from adagrpo_ray.environments.fork_server import load

    parts, schemas = load(setup)
    return (replace(parts, make=Made) if parts.make is not None else parts), schemas


def load_sets(*overrides: str, tokenizer: Any = TOKENIZER) -> PromptSets:
    settings = ["environment.name=Made", "data.source=environment", "data.eval_prompts=2"]
    settings += ["algorithm.prompts_per_step=1", "rewards.functions=[{function: environment}]", *overrides]
    return load_episode_prompts(Config.load(None, settings), tokenizer, "", GIVEN)


def texts(sets: PromptSets, tokenizer: Any = TOKENIZER) -> set[str]:
    return {tokenizer.decode(p.token_ids.tolist()) for p in (*sets.train, *sets.held_out)}


def test_rows_of_the_environment_are_the_prompts() -> None:
    sets = load_sets()
    assert (len(sets.train), len(sets.held_out)) == (4, 2)
    assert texts(sets) == {f"<|im_start|>user\nrow {n}<|im_end|>\n<|im_start|>assistant\n" for n in range(6)}
    assert {p.columns["name"] for p in sets.train} < {f"n{n}" for n in range(6)}
    assert sets.notes == ()


def test_only_one_row_is_reset_if_its_messages_are_those_of_the_row() -> None:
    load_sets()
    ((row, _),) = Made.resets
    assert row == {"problem": "row 0", "answer": "0", "prompt": "row 0", "solution": "0", "name": "n0"}


def test_messages_of_reset_are_the_prompts() -> None:
    sets = load_sets("environment.arguments={gives: hello}")
    assert "<|im_start|>user\nhello n3<|im_end|>\n<|im_start|>assistant\n" in texts(sets)
    assert len(Made.resets) == 6
    assert len({seed for _, seed in Made.resets}) == 6
    assert {prompt.text for prompt in sets.train} < {f"row {n}" for n in range(6)}, "the problem is that of the data"


def test_ids_and_the_split_do_not_depend_on_reset() -> None:
    one, other = load_sets(), load_sets("environment.arguments={gives: hello}")
    assert [p.id for p in one.held_out] == [p.id for p in other.held_out]


def test_failing_reset_is_one_error() -> None:
    with pytest.raises(DataError, match=r"environment\.name='Made': reset failed for a row of data\.source: no reset"):
        load_sets("environment.arguments={gives: fails}")


def test_unused_rewards_of_an_environment_are_noted() -> None:
    (note,) = load_sets("rewards.functions=[{function: exact}]").notes
    assert note.startswith("the rewards of environment.name='Made' are not used")


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}+1?", "solution": str(n + 1)}) + "\n" for n in range(4)))
    return path


def test_schemas_of_tools_are_in_the_prompts(rows_file: Path) -> None:
    tokenizer = templated("qwen2_5")
    more = ("environment.name=null", "environment.tools=[add]", f"data.source={rows_file}")
    sets = load_sets(*more, "rewards.functions=[{function: exact}]", tokenizer=tokenizer)
    assert all('"name": "add"' in text and "the first number" in text for text in texts(sets, tokenizer))
    assert Made.resets == []


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (TOKENIZER, r"^environment\.parser=auto: no built-in parser reads the tool calls"),
        (tokenizer_of(template=ASKS), r"^environment\.parser=auto"),
    ],
)
def test_template_without_calls_is_refused(rows_file: Path, tokenizer: Any, expected: str) -> None:
    more = ("environment.name=null", "environment.tools=[add]", f"data.source={rows_file}")
    with pytest.raises(ConfigError, match=expected):
        load_sets(*more, "rewards.functions=[{function: exact}]", tokenizer=tokenizer)


def test_template_that_leaves_out_tools_is_refused(rows_file: Path) -> None:
    more = ("environment.name=null", "environment.tools=[add]", "environment.parser=hermes", f"data.source={rows_file}")
    with pytest.raises(DataError, match="leaves out the tool 'add'; use a model that takes tools"):
        load_sets(*more, "rewards.functions=[{function: exact}]")


def test_longest_sequence_has_room_for_observations() -> None:
    prompts = load_sets().train
    longest = max(len(prompt.token_ids) for prompt in prompts)
    episodes = ("environment.name=Made", "environment.max_observation_tokens=100")

    def length(*overrides: str) -> int:
        return longest_sequence(Config.load(None, ["rollout.max_new_tokens=32", *overrides]), prompts)

    assert length() == longest + 32
    assert length(*episodes) == longest + 132
    assert length(*episodes, "rollout.max_model_len=500") == 500


def test_prompts_that_leave_no_room_for_an_episode_are_dropped() -> None:
    (length,) = {len(prompt.token_ids) for prompt in load_sets().train}
    limits = ("rollout.max_new_tokens=32", "environment.max_observation_tokens=100")
    assert len(load_sets(*limits, f"rollout.max_model_len={length + 132}").train) == 4
    with pytest.raises(DataError, match=r"leaves 0 prompts .* \(dropped: 6 too long\)"):
        load_sets(*limits, f"rollout.max_model_len={length + 131}")
