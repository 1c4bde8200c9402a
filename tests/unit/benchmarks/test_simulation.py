"""The simulation of tests/benchmarks, compared with results computed by hand."""

from __future__ import annotations

import importlib
import json
import random
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import simulated_parts as parts
import simulation

FREE = parts.Constants(
    decode_seconds=0.1,
    decode_seconds_per_sequence=0.0,
    prefill_seconds_per_token=0.0,
    max_sequences=8,
    merged=False,
    request_seconds=0.0,
    completion_seconds=0.0,
    pending_seconds=0.0,
    batch_seconds=0.0,
    call_seconds=0.0,
    pack_seconds=0.0,
    pack_seconds_per_byte=0.0,
    put_seconds=0.0,
    put_seconds_per_byte=0.0,
    dispatch_seconds=0.0,
    apply_seconds=0.0,
    apply_seconds_per_byte=0.0,
    adapter_bytes=1000,
    learner_seconds_per_token=0.0,
    reward_seconds=0.0,
    reward_workers=1,
)


def simulate(actors: int = 1, lengths: tuple[int, ...] = (10,), prompts: int = 4, **settings: Any) -> Any:
    """Simulate a step, by default of 4 groups of 2; `settings` are constants or arguments of `simulation.simulate`."""
    constants = {name: settings.pop(name) for name in asdict(FREE) if name in settings}
    settings = {"prompts": prompts, "group_size": 2, **settings}
    return simulation.simulate(replace(FREE, **constants), lengths, actors, **settings)


def test_step_time_is_that_of_decoding_and_training() -> None:
    point = simulate(decode_seconds_per_sequence=0.01, learner_seconds_per_token=0.02)
    assert point.tokens == 80
    assert point.wait == pytest.approx(10 * (0.1 + 8 * 0.01))
    assert point.learner == pytest.approx(80 * 0.02)
    assert point.seconds == pytest.approx(1.8 + 1.6)
    assert point.decoding == pytest.approx(1.8)
    assert point.tail == pytest.approx(0)
    assert point.limit == "decoding"


def test_learner_ranks_share_the_tokens() -> None:
    assert simulate(learner_seconds_per_token=0.05, ranks=4).learner == pytest.approx(80 * 0.05 / 4)
    assert simulate(learner_seconds_per_token=0.05).limit == "learner"


@pytest.mark.parametrize(("actors", "waves"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_more_actors_shorten_decoding_if_sequences_wait(actors: int, waves: int) -> None:
    point = simulate(actors, prompts=16)  # 32 sequences, 8 at a time in an actor
    assert point.seconds == pytest.approx(waves * 10 * 0.1)


def test_free_place_goes_to_the_next_sequence() -> None:
    # With one place, sequences are decoded one after the other.
    assert simulate(lengths=(1, 2, 7), max_sequences=1).seconds == pytest.approx(
        simulate(lengths=(1, 2, 7), max_sequences=1).tokens * 0.1
    )


def test_engine_equals_a_simulation_token_by_token() -> None:
    lengths, rng = tuple(range(1, 60)), random.Random("0/1")
    waiting = [length for _ in range(20) if not rng.choice((0,)) for length in rng.choices(lengths, k=2)]
    running: list[int] = []
    seconds = 0.0
    while waiting or running:
        running, waiting = running + waiting[: 8 - len(running)], waiting[8 - len(running) :]
        seconds += 0.1 + 0.01 * len(running)
        running = [left - 1 for left in running if left > 1]
    point = simulate(lengths=lengths, prompts=20, decode_seconds_per_sequence=0.01, warm_up=0, steps=1)
    assert point.seconds == pytest.approx(seconds)


def test_requests_wait_for_the_actor_that_is_free_first() -> None:
    """Each actor decodes one sequence and has at most four in flight; later groups go to the actor that ends first."""
    lengths, rng = (1, 1, 1, 50), random.Random("0/1")
    groups = [sum(rng.choices(lengths, k=2)) for _ in range(40) if not rng.choice((0,))]
    point = simulate(2, lengths=lengths, prompts=40, max_sequences=1, warm_up=0, steps=1)
    in_turn = max(sum(groups[0::2]), sum(groups[1::2])) * 0.1
    assert sum(groups) / 2 * 0.1 <= point.seconds < in_turn


def test_prompt_of_a_group_is_prefilled_once() -> None:
    point = simulate(prefill_seconds_per_token=0.001, prompt_lengths=(50,))
    assert point.seconds == pytest.approx(1.0 + 4 * 50 * 0.001)


def test_longest_completion_is_the_tail() -> None:
    # Some steps have a long completion, whose time beyond the mean length is the tail.
    point = simulate(lengths=(1,) * 30 + (100,), prompts=32, max_sequences=64, steps=20)
    assert point.seconds == pytest.approx(point.decoding + point.tail)
    assert point.limit == "tail"


def test_controller_limits_a_step_by_its_requests() -> None:
    point = simulate(16, prompts=64, request_seconds=0.5, completion_seconds=0.01)
    assert point.controller == pytest.approx(64 * 0.5 + 128 * 0.01)
    assert point.seconds >= 64 * 0.5
    assert point.limit == "controller"


def test_open_groups_take_time_of_the_controller_whenever_one_ends() -> None:
    assert simulate(pending_seconds=0.1).controller == pytest.approx((3 + 2 + 1) * 0.1)


def test_batch_is_packed_after_the_last_answer() -> None:
    assert simulate(batch_seconds=0.03).seconds == pytest.approx(1.0 + 8 * 0.03)


def test_call_takes_the_time_of_both_directions() -> None:
    point = simulate(call_seconds=0.02)
    assert point.wait == pytest.approx(1.0 + 0.02)
    assert point.sync == pytest.approx(0.02)


def test_workers_share_the_scoring() -> None:
    one, four = (simulate(reward_seconds=1.0, reward_workers=workers) for workers in (1, 4))
    assert (one.wait, four.wait) == (pytest.approx(1.0 + 4.0), pytest.approx(1.0 + 1.0))
    assert one.limit == "rewards"


def test_sync_is_packed_once_and_sent_to_each_actor() -> None:
    point = simulate(
        16,
        pack_seconds=0.1,
        pack_seconds_per_byte=1e-4,
        put_seconds=0.2,
        put_seconds_per_byte=2e-4,
        dispatch_seconds=0.25,
        apply_seconds=0.4,
        apply_seconds_per_byte=3e-4,
    )
    # The last actor receives its reference after all others, which apply theirs at the same time.
    assert point.sync == pytest.approx(0.1 + 0.1 + 0.2 + 0.2 + 16 * 0.25 + 0.4 + 0.3)
    assert point.limit == "sync"
    assert point.controller == 0


def test_network_sends_the_object_to_each_node() -> None:
    # 1000 bytes to 3 nodes other than that of rank 0.
    assert simulate(8, network_seconds_per_byte=1e-3, actors_per_node=2).sync == pytest.approx(3 * 1.0)


@pytest.mark.parametrize(("learner_seconds_per_token", "expected"), [(0.005, 1.0), (0.02, 1.6)])
def test_running_ahead_hides_the_shorter_of_rollout_and_training(
    learner_seconds_per_token: float, expected: float
) -> None:
    in_turn = simulate(learner_seconds_per_token=learner_seconds_per_token)
    assert in_turn.seconds == pytest.approx(1.0 + 80 * learner_seconds_per_token)
    ahead = simulate(learner_seconds_per_token=learner_seconds_per_token, max_staleness=1)
    assert ahead.seconds == pytest.approx(expected)


def test_sync_pauses_the_decoding_of_the_step_ahead() -> None:
    settings = {"max_staleness": 1, "learner_seconds_per_token": 0.005, "apply_seconds": 0.3}
    assert simulate(**settings).seconds == pytest.approx(1.0 + 0.3)
    merged = simulate(**settings, merged=True, prefill_seconds_per_token=0.001)
    # Training ends 0.4 s into the next step: its 8 sequences, of 4 tokens each, are prefilled again.
    assert merged.seconds == pytest.approx(1.0 + 0.3 + 8 * 4 * 0.001)


def test_same_seed_gives_the_same_result() -> None:
    settings = {"lengths": tuple(range(1, 40)), "prompts": 16, "request_seconds": 0.01, "max_staleness": 1}
    assert simulate(4, **settings, seed=3) == simulate(4, **settings, seed=3)
    assert simulate(4, **settings, seed=3) != simulate(4, **settings, seed=4)


def test_simulation_is_repeated_from_a_file_of_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"constants": asdict(FREE), "lengths": [5, 10], "prompt_lengths": [3]}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulation, "ACTORS", (1, 2))
    monkeypatch.setattr(simulation, "STRONG_PROMPTS", 16)
    gpu = ["--decode-ms", "20", "--learner-tokens-per-s", "10000", "--adapter-mb", "70"]
    monkeypatch.setattr(sys, "argv", ["simulation.py", "--from", str(saved), *gpu])
    simulation.main()
    out = json.loads((tmp_path / simulation.OUT).read_text())
    assert len(out["measured"]) == len(out["what_if"]) == 2 * 2 * 2 * 2  # ranks, scaling, staleness, actors
    assert {row["efficiency"] for row in out["measured"] if row["actors"] == 1} == {1.0}
    assert out["assumed"]["adapter_mb"] == 70
    assert "ASSUMED" in capsys.readouterr().out


def test_assumptions_must_be_given_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulation.py", "--decode-ms", "20"])
    with pytest.raises(SystemExit):
        simulation.main()
    assert "together" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["adaptive", "bench", "sync", "throughput"])
def test_benchmarks_can_be_imported(name: str) -> None:
    """Checks only that the imports of the benchmark work."""
    assert callable(importlib.import_module(name).main)
    assert callable(importlib.import_module("constants").measure)
