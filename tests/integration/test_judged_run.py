"""A whole run with a judge behind a server on this machine, which fails now and then."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import metrics, train
from tests.support.served_models import Body, scored, serving

pytestmark = pytest.mark.long

KEY = "judge-planted0" * 2


def test_run_counts_the_requests_of_its_judge_and_hides_the_key(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    requests = count(1)

    def reply(body: Body) -> tuple[int, Any]:
        if next(requests) % 13 == 0:
            return 500, {"error": {"message": f"out of memory, {KEY}"}}
        return 200, scored(len(body["messages"][0]["content"]) % 10)

    with serving(reply) as server:
        judge = {
            "name": "helpful",
            "model": "judge-1",
            "base_url": server.url,
            "api_key_env": "JUDGE_API_KEY",
            "template": "{prompt} {completion}",
            "retries": 0,
            "prompt_price": 1.0,
        }
        functions = json.dumps([{"function": "exact"}, {"judge": judge, "weight": 0.1}])
        output = train(tmp_path, 3, f"rewards.functions={functions}", "rewards.correct_by=exact")
    steps = metrics(tmp_path / "run")
    assert len(steps) == 3
    evaluations = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    asked = sum(step["judge_requests"]["helpful"] for step in steps)
    assert 12 < asked < len(server.bodies)
    before, after = evaluations
    assert before["judge_requests"]["helpful"] == before["samples"] == 4
    assert after["judge_requests"]["helpful"] + after["judge_cache_hits"]["helpful"] == 4  # equal answers are cached
    judges = json.loads((tmp_path / "run" / "summary.json").read_text())["judges"]["helpful"]
    assert judges["requests"] == asked + sum(evaluation["judge_requests"]["helpful"] for evaluation in evaluations)
    assert judges["cost"] == pytest.approx(judges["prompt_tokens"] / 1e6)
    assert sum(step["judge_failures"]["helpful"] for step in steps) > 0
    assert sum(step["groups_failed"] for step in steps) > 0
    assert sum(step["judge_cost"]["helpful"] for step in steps) == pytest.approx(
        sum(step["judge_prompt_tokens"]["helpful"] for step in steps) / 1e6
    )
    assert all(step["rewards_mean"].keys() == {"exact", "helpful"} for step in steps)
    assert "'helpful' at" in output
    assert "answered with an error (Error code: 500 - out of memory, ***)" in output
    assert set(server.keys) == {f"Bearer {KEY}"}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "metrics.jsonl", "summary.json"} <= {file.name for file in files}
    assert KEY not in output
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []
