"""The requests, tokens and costs of judges and reward models: sums over steps, evaluations and problems, and a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adagrpo_ray.runs.records import EvaluationRecord, StepRecord

Counts = Mapping[str, float]
"""The counts of one judge or reward model, by the names of KINDS. Without prices there is no cost."""
KINDS = ("requests", "prompt_tokens", "completion_tokens", "cache_hits", "failures", "cost")
"""The fields `judge_...` of steps and evaluations."""


def of_records(records: Iterable[StepRecord | EvaluationRecord]) -> dict[str, dict[str, float]]:
    """Return the sums over steps and evaluations, by the names of judges and reward models."""
    return added(_by_name(record) for record in records)


def added(parts: Iterable[Mapping[str, Counts]]) -> dict[str, dict[str, float]]:
    """Return the sums over counts that are given by the names of judges and reward models."""
    sums: dict[str, dict[str, float]] = {}
    for part in parts:
        for name, counts in part.items():
            own = sums.setdefault(name, {})
            for kind, number in counts.items():
                own[kind] = own.get(kind, 0) + number
    return sums


def tokens(counts: Counts) -> float:
    """Return the tokens of prompts and replies."""
    return counts.get("prompt_tokens", 0) + counts.get("completion_tokens", 0)


def in_words(counts: Counts) -> str:
    """Return the counts for people: '120 requests, 3 completions without a score, 9,000 tokens, cost 0.0123'."""
    parts = [
        f"{counts.get('requests', 0):,} requests",
        *([f"{counts['failures']:,} completions without a score"] if counts.get("failures") else []),
        f"{tokens(counts):,} tokens",
        *([f"cost {counts['cost']:.4g}"] if "cost" in counts else []),
    ]
    return ", ".join(parts)


def _by_name(record: StepRecord | EvaluationRecord) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        for name, number in getattr(record, f"judge_{kind}").items():
            found.setdefault(name, {})[kind] = number
    return found
