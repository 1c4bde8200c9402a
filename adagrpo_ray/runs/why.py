"""Explains in words why a group has its size, and why it was sampled again or not: the criterion and its effect."""

from __future__ import annotations

from adagrpo_ray.algorithm.statistics import RewardStatistics
from adagrpo_ray.config.method_defaults import METHOD_DEFAULTS
from adagrpo_ray.config.sampling import PhaseParams, SamplingParams
from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.samples import AttemptSample, GroupSample


def why(group: GroupSample, number: int, run: RunHistory) -> str:
    """Explain attempt `number` of the group, or this part of one, counted from 0, under the settings of the run."""
    attempt, name = group.attempts[number], run.setting("algorithm.name")
    if number + 1 < len(group.attempts):
        following = group.attempts[number + 1]
        if following.part != "commit":
            return f"{_failed(group, number, run)} So it was sampled again, with {rung(following)}."
        more = f"{len(following.completions)} more completions at the base parameters"
        return f"{_counts(attempt)} It met the criterion {_kind(run)}, so {more} were requested at once."
    if group.outcome == "trained":
        return _ready(attempt, run)
    failed, due = _failed(group, number, run), "next attempt"
    if attempt.part == "pilot" and group.outcome != "exhausted" and any(c.correct for c in attempt.completions):
        # The step ended before the commit, or the pilot did not meet a criterion other than any_correct.
        failed, due = _counts(attempt), "commit" if _kind(run) == "any_correct" else "commit or next attempt"
    if group.outcome == "waiting":
        return f"{failed} It waits for its {due} in a later step."
    if group.outcome == "dropped":
        return (
            f"{failed} It was dropped: it had waited for more than algorithm.max_group_age="
            f"{run.setting('algorithm.max_group_age')} steps, a reward function failed on its {due}, or its "
            "prompt was given up since it kills rollout actors."
        )
    if any(c.advantage is not None for attempt in group.attempts for c in attempt.completions):
        return f"{failed} {_no_rung(run)}; it was trained on nevertheless (algorithm.on_exhausted=train)."
    if name == "dapo":
        return f"{failed} DAPO drops such a group and samples another prompt."
    return f"{failed} {_no_rung(run)}, and it was not trained on (algorithm.on_exhausted=drop)."


def _no_rung(run: RunHistory) -> str:
    if run.setting("algorithm.allocation.enabled") and run.setting("algorithm.allocation.judge_rungs"):
        return "No rung was left, or the next one did not pay for its class (algorithm.allocation.judge_rungs)"
    return "No rung was left"


def trained_on(group: GroupSample, run: RunHistory) -> str:
    """Explain which completions of the group are in the loss; "" if none of them is."""
    advantages = [c.advantage for attempt in group.attempts for c in attempt.completions]
    used = [advantage for advantage in advantages if advantage is not None]
    if not used:
        return ""
    setting = f"algorithm.train_on={run.setting('algorithm.train_on') or _selection(run)}"
    which = f"In the loss are {len(used)} of {len(advantages)} completions ({setting}), those with an advantage."
    return which if any(used) else f"{which} All advantages are 0, so they have no policy gradient."


def sized(group: GroupSample, run: RunHistory) -> str:
    """Explain the size of the group; "" if its prompt and its class had no results when it was drawn."""
    if group.chance is None or group.size is None:
        return ""
    rule = run.setting("algorithm.allocation.rule")
    return (
        f"By earlier results its success rate was expected to be {group.chance:.2f}, so it got {group.size} "
        f"completions (algorithm.allocation.rule={rule})."
    )


def rung(attempt: AttemptSample) -> str:
    """The rung of an attempt and its sampling parameters."""
    place = "the base parameters" if attempt.rung < 0 else f"rung {attempt.rung}"
    return f"{place} ({parameters(attempt.sampling)})"


def parameters(sampling: PhaseParams) -> str:
    """The temperature, and those of the other parameters that are in effect."""
    off = PhaseParams()
    parts = [f"temperature {sampling.temperature:g}"]
    for name in ("top_p", "top_k", "min_p", "repetition_penalty"):
        value = getattr(sampling, name)
        if value != getattr(off, name):
            parts.append(f"{name} {value:g}")
    if isinstance(sampling, SamplingParams) and sampling.answer is not None:
        parts.append(f"then for the answer {parameters(sampling.answer)}")
    return ", ".join(parts)


def statistics(group: GroupSample, number: int) -> RewardStatistics:
    """Statistics of the rewards of all attempts up to `number`."""
    rewards = [c.reward for attempt in group.attempts[: number + 1] for c in attempt.completions]
    return RewardStatistics.of(rewards)


def _ready(attempt: AttemptSample, run: RunHistory) -> str:
    """The reason why the group is trained on after its last attempt."""
    if attempt.part == "commit":
        return f"{_counts(attempt)} After its commit a group is ready, whatever the commit gave."
    if attempt.part == "pilot":
        return f"{_counts(attempt)} So the prompt is solved, and there is no commit."
    grpo = run.setting("algorithm.name") == "grpo"
    met = "GRPO trains on every group as it is" if grpo else f"It met the criterion {_kind(run)}"
    return f"{met}: {_correct(attempt)}, best reward {_best(attempt)}."


def basis(run: RunHistory) -> str:
    """The completions whose rewards the advantages of the run are computed from."""
    others = {"last": "the last attempt", "trained": "the completions trained on"}
    return others.get(str(run.setting("algorithm.advantage_statistics")), "all attempts")


def _failed(group: GroupSample, number: int, run: RunHistory) -> str:
    """The reason why an attempt did not meet the criterion."""
    attempt, kind = group.attempts[number], _kind(run)
    match kind:
        case "any_correct":
            missing = f"none of {len(attempt.completions)} is correct; best reward {_best(attempt)}"
            return f"No completion met the criterion any_correct: {missing}."
        case "any_above":
            column = run.setting("algorithm.criterion.reward")
            highest = _number(max(_scores(attempt, column), default=None))
            by = "reward" if column is None else f"score by {column}"
            return f"No completion met the criterion any_above: best {by} {highest}, not above {_threshold(run):g}."
        case "spread":
            std = f"{statistics(group, number).std:.3g}, not above {_threshold(run):g}"
            missing = f"its rewards so far have a standard deviation of {std}; best reward {_best(attempt)}"
            return f"The group did not meet the criterion spread: {missing}."
        case "balanced":
            correct = [c.correct for earlier in group.attempts[: number + 1] for c in earlier.completions]
            counts = f"{sum(correct)} correct and {len(correct) - sum(correct)} wrong completions so far"
            half = (len(attempt.completions) + 1) // 2
            return f"The group did not meet the criterion balanced: {counts}, and {half} of each are needed."
    return f"The group did not meet the criterion {kind}: {_correct(attempt)}, best reward {_best(attempt)}."


def _selection(run: RunHistory) -> str:
    """The completions that the method of the run trains on by default."""
    return METHOD_DEFAULTS.get(str(run.setting("algorithm.name")), METHOD_DEFAULTS["grpo"]).train_on


def _kind(run: RunHistory) -> str:
    """The criterion in effect."""
    if run.setting("algorithm.name") == "dapo":
        return "spread"
    return str(run.setting("algorithm.criterion.kind") or "any_correct")


def _threshold(run: RunHistory) -> float:
    value = run.setting("algorithm.criterion.threshold")
    return float(value) if isinstance(value, int | float) and run.setting("algorithm.name") != "dapo" else 0.0


def _scores(attempt: AttemptSample, column: str | None) -> list[float]:
    scores = [c.reward if column is None else c.rewards.get(column) for c in attempt.completions]
    return [score for score in scores if score is not None]


def _best(attempt: AttemptSample) -> str:
    return _number(attempt.best_reward)


def _counts(attempt: AttemptSample) -> str:
    return f"{attempt.part.capitalize()}: {_correct(attempt)}, best reward {_best(attempt)}."


def _correct(attempt: AttemptSample) -> str:
    return f"{sum(c.correct for c in attempt.completions)} of {len(attempt.completions)} correct"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
