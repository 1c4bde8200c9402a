"""The run folder and the terminal output of records made by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ConfigError, ResourceError
from adagrpo_ray.runs import (
    Console,
    EvaluationRecord,
    GroupSample,
    Observer,
    Observers,
    RunWriter,
    StepRecord,
    Summary,
    summarize,
    wording,
)
from adagrpo_ray.runs.metric import scalars
from adagrpo_ray.runs.observer import run_events
from tests.support.histories import BEFORE, EPISODES, ON_BENCHMARKS, SAMPLE, STEP

STEP_JSON = {
    "step": 1,
    "step_time": 0.5,
    "tokens_per_second": 8000.0,
    "reward": 0.25,
    "rewards_mean": {"exact": 0.25, "length": None},
    "accuracy": 0.375,
    "groups_ready": 6,
    "groups_waiting": 2,
    "groups_late": 1,
    "groups_exhausted": 1,
    "groups_failed": 0,
    "groups_dropped": 0,
    "resamples": [3, 1],
    "resamples_by_difficulty": {"2": 1, "5": 3},
    "accuracy_by_difficulty": {"2": 0.75, "5": 0.0},
    "rescued": [2, 0],
    "pilots": 8,
    "commits": 3,
    "solved_pilots": 2,
    "frac_reward_zero_std": 0.5,
    "frac_reward_zero_std_after": 0.125,
    "frac_reward_zero_std_by_difficulty": {"5": 1.0},
    "frac_reward_zero_std_after_by_difficulty": {"5": 0.25},
    "informative_groups": 5,
    "brier_posterior": 0.125,
    "brier_prior": 0.1875,
    "reliability": {"0": [12, 0.5, 0], "0.7": [8, 6.0, 7]},
    "generated_tokens": 4000,
    "extra_tokens": 1000,
    "staleness": 0.75,
    "judge_requests": {"helpful": 9},
    "judge_prompt_tokens": {"helpful": 900},
    "judge_completion_tokens": {"helpful": 45},
    "judge_cache_hits": {"helpful": 7},
    "judge_failures": {"helpful": 1},
    "judge_cost": {"helpful": 0.125},
    "trained_tokens": 3200,
    "completions_mean_length": 50.0,
    "group_size": 6.5,
    "prompts_skipped": 3,
    "reward_std": 0.5,
    "rewards_std": {"exact": 0.5, "length": None},
    "rewards_frac_zero_std": {"exact": 0.5, "length": None},
    "completions_clipped_ratio": 0.25,
    "completions_mean_terminated_length": 42.0,
    "loss": 0.01,
    "kl": None,
    "grad_norm": None,
    "learning_rate": 0.0003,
    "clip_ratio_region_mean": 0.02,
    "sampling_logp_difference_mean": 0.001,
    "importance_sampling_ratio_mean": 1.01,
    "importance_sampling_ratio_frac_truncated": 0.0,
    "weight_version": 1,
    "sync_bytes": 1024,
    "rollout_actors": 2,
    "rollout_restarts": 0,
    "sync_time": 0.05,
    "passes": 2,
    "time": {"rollout": 0.3, "train": 0.15, "sync": 0.05},
    "clip_ratio_low_mean": 0.015,
    "clip_ratio_high_mean": 0.005,
    "policy_ratio_min": 0.7,
    "policy_ratio_mean": 1.0,
    "policy_ratio_max": 1.4,
    "sampling_logp_difference_max": 0.25,
    "importance_sampling_ratio_min": 0.9,
    "importance_sampling_ratio_max": 2.0,
    "importance_sampling_ratio_frac_masked": 0.0,
    "entropy": 1.25,
    "entropy_by_difficulty": {"2": 0.5, "5": 2.0},
    **dict.fromkeys(("last_update_loss", "last_update_kl", "last_update_entropy", "last_update_grad_norm")),
    "skipped_updates": 0,
    **dict.fromkeys(EPISODES),
}

AFTER = EvaluationRecord(
    12, 0.75, {"10": 0.5, "2": 1.0}, samples=128, failed=0, completions_mean_length=44.0, runtime=2.0
)

STEPS = [
    replace(STEP, step=step, reward=step / 16, resamples=(step, 1) if step > 6 else (step,)) for step in range(1, 13)
]


def run_summary(folder: Path) -> Summary:
    return summarize(STEPS, BEFORE, AFTER, name="sums", folder=folder, adapter=folder / "adapter")


def read_lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_metrics_of_trl_have_its_names() -> None:
    found = scalars(STEP)
    assert {
        "reward": 0.25,
        "reward_std": 0.5,
        "frac_reward_zero_std": 0.5,
        "rewards/exact/mean": 0.25,
        "rewards/exact/std": 0.5,
        "rewards/exact/frac_zero_std": 0.5,
        "completions/mean_length": 50.0,
        "completions/clipped_ratio": 0.25,
        "completions/mean_terminated_length": 42.0,
        "loss": 0.01,
        "learning_rate": 3e-4,
        "entropy": 1.25,
        "entropy_by_difficulty/2": 0.5,
        "clip_ratio/low_mean": 0.015,
        "clip_ratio/high_mean": 0.005,
        "clip_ratio/region_mean": 0.02,
        "adaptive/policy_ratio/min": 0.7,
        "adaptive/policy_ratio/mean": 1.0,
        "adaptive/policy_ratio/max": 1.4,
        "sampling/importance_sampling_ratio/min": 0.9,
        "sampling/importance_sampling_ratio/mean": 1.01,
        "sampling/importance_sampling_ratio/max": 2.0,
        "sampling/importance_sampling_ratio/frac_truncated": 0.0,
        "sampling/importance_sampling_ratio/frac_masked": 0.0,
        "sampling/sampling_logp_difference/mean": 0.001,
        "sampling/sampling_logp_difference/max": 0.25,
        "step_time": 0.5,
    }.items() <= found.items()
    assert "rewards/length/mean" not in found  # not measured
    measured = scalars(replace(STEP, kl=0.5, grad_norm=2.0))
    assert (measured["kl"], measured["grad_norm"]) == (0.5, 2.0)


def test_metrics_of_benchmarks_are_named_by_them() -> None:
    found = scalars(ON_BENCHMARKS)
    assert {
        "eval/accuracy": 0.25,
        "eval/gsm8k/accuracy": 0.375,
        "eval/gsm8k/pass_at_k": 0.5,
        "eval/gsm8k/samples": 400.0,
        "eval/aime24/failed": 2.0,
        "eval/aime24/completions/mean_length": 900.5,
        "eval/aime24/completions/clipped_ratio": 1.0,
    }.items() <= found.items()
    assert not [name for name in scalars(BEFORE) if "gsm8k" in name]


class TestRecords:
    def test_step_becomes_json_with_null_for_unmeasured_metrics(self) -> None:
        assert STEP.to_dict() == STEP_JSON
        json.dumps(STEP.to_dict(), allow_nan=False)

    def test_numpy_scalars_become_json(self) -> None:
        record = replace(STEP, loss=np.float32(0.5), generated_tokens=np.int64(7))
        written = json.loads(json.dumps(record.to_dict(), allow_nan=False))
        assert (written["loss"], written["generated_tokens"]) == (0.5, 7)

    def test_summary_of_twelve_steps_is_that_computed_by_hand(self) -> None:
        summary = run_summary(Path("runs/sums"))
        assert json.loads(json.dumps(summary.to_dict(), allow_nan=False)) == {
            "eval_accuracy_before": 0.25,
            "eval_accuracy_after": 0.75,
            "steps": 12,
            "generated_tokens": 48000,
            "trained_tokens": 38400,
            "resamples": [78, 6],
            "seconds": 6.0,
            "rescued": [24, 0],
            "extra_tokens": 12000,
            "tokens_per_informative_group": 800.0,
            "groups_exhausted": 12,
            "groups_failed": 0,
            "eval_accuracy_by_difficulty_before": {"10": 0.0, "2": 0.5},
            "eval_accuracy_by_difficulty_after": {"10": 0.5, "2": 1.0},
            "resamples_by_difficulty": {"2": 12, "5": 36},
            "frac_reward_zero_std_by_difficulty": {"5": 1.0},
            "frac_reward_zero_std_after_by_difficulty": {"5": 0.25},
            # ceil(12 / 10) = 2 steps an interval.
            "resamples_by_interval": [
                {"from": 1, "to": 2, "resamples": 3, "reward": 1.5 / 16},
                {"from": 3, "to": 4, "resamples": 7, "reward": 3.5 / 16},
                {"from": 5, "to": 6, "resamples": 11, "reward": 5.5 / 16},
                {"from": 7, "to": 8, "resamples": 17, "reward": 7.5 / 16},
                {"from": 9, "to": 10, "resamples": 21, "reward": 9.5 / 16},
                {"from": 11, "to": 12, "resamples": 25, "reward": 11.5 / 16},
            ],
            "name": "sums",
            "folder": "runs/sums",
            "adapter": "runs/sums/adapter",
            "skipped_updates": 0,
            "benchmark_accuracy_before": {},
            "benchmark_accuracy_after": {},
            "judges": {
                "helpful": {
                    "requests": 108,
                    "prompt_tokens": 10800,
                    "completion_tokens": 540,
                    "cache_hits": 84,
                    "failures": 12,
                    "cost": 1.5,
                }
            },
        }

    @pytest.mark.parametrize(("steps", "intervals"), [(1, [1]), (10, [1] * 10), (11, [2] * 5 + [1])])
    def test_intervals_cover_every_step_once(self, steps: int, intervals: list[int]) -> None:
        summary = summarize(STEPS[:steps], None, None, name="x", folder=Path("x"), adapter=Path("x"))
        assert [i.last - i.first + 1 for i in summary.resamples_by_interval] == intervals
        assert sum(i.resamples for i in summary.resamples_by_interval) == sum(summary.resamples)

    def test_summary_of_no_steps(self) -> None:
        summary = summarize([], None, None, name="x", folder=Path("x"), adapter=Path("x"))
        written = summary.to_dict()
        assert (written["eval_accuracy_before"], written["eval_accuracy_after"]) == (None, None)
        assert (summary.steps, summary.resamples, summary.seconds) == (0, (), 0.0)
        assert summary.resamples_by_interval == ()

    def test_mean_reward_skips_unmeasured_steps(self) -> None:
        steps = [replace(STEP, step=s, reward=r) for s, r in enumerate([0.5, None], 1)] * 6
        summary = summarize(steps, None, None, name="x", folder=Path("x"), adapter=Path("x"))
        assert {i.reward for i in summary.resamples_by_interval} == {0.5}
        alone = summarize(steps[1:2], None, None, name="x", folder=Path("x"), adapter=Path("x"))
        assert alone.resamples_by_interval[0].reward is None


class TestRunWriter:
    def test_files_hold_everything_written(self, tmp_path: Path) -> None:
        folder = tmp_path / "runs" / "sums"
        with RunWriter(folder, "run:\n  name: sums\n") as writer:
            writer.phase("starting")
            writer.evaluation("before", BEFORE)
            for step in STEPS:
                writer.step(step)
            writer.summary(run_summary(folder))
        assert (folder / "config.yaml").read_text() == "run:\n  name: sums\n"
        assert read_lines(folder / "metrics.jsonl") == [
            {**STEP_JSON, "step": s.step, "reward": s.reward, "resamples": list(s.resamples)} for s in STEPS
        ]
        assert read_lines(folder / "evaluations.jsonl") == [
            {
                "label": "before",
                "step": 0,
                "accuracy": 0.25,
                "accuracy_by_difficulty": {"10": 0.0, "2": 0.5},
                "samples": 128,
                "failed": 0,
                "completions_mean_length": 40.0,
                "runtime": 3.0,
                **{name: {} for name in BEFORE.to_dict() if name.startswith(("benchmark_", "judge_"))},
            }
        ]
        assert json.loads((folder / "summary.json").read_text()) == run_summary(folder).to_dict()
        assert sorted(p.name for p in folder.iterdir()) == [
            "config.yaml",
            "evaluations.jsonl",
            "metrics.jsonl",
            "summary.json",
            "tensorboard",
        ]

    def test_each_step_is_on_disk_before_the_next(self, tmp_path: Path) -> None:
        writer = RunWriter(tmp_path / "run", "")
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
        for done, step in enumerate(STEPS[:3], 1):
            writer.step(step)
            assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == done
        writer.close()
        writer.close()

    def test_tensorboard_shows_metrics_in_groups(self, tmp_path: Path) -> None:
        with RunWriter(tmp_path / "run", "") as writer:
            writer.evaluation("before", replace(BEFORE, accuracy_by_difficulty={"": 0.25}))
            writer.step(STEPS[0])
            writer.step(STEPS[7])
        scalars = read_scalars(tmp_path / "run" / "tensorboard")
        assert scalars["reward"] == [(1, 0.0625), (8, 0.5)]
        assert scalars["accuracy"] == [(1, 0.375), (8, 0.375)]
        assert scalars["eval/accuracy"] == [(0, 0.25)]
        assert scalars["adaptive/resamples/rung_0"] == [(1, 1.0), (8, 8.0)]
        assert scalars["adaptive/resamples/rung_1"] == [(8, 1.0)]
        assert scalars["adaptive/group_size"] == [(1, 6.5), (8, 6.5)]
        assert scalars["adaptive/groups_failed"] == [(1, 0.0), (8, 0.0)]
        assert scalars["eval/failed"] == [(0, 0.0)]
        assert scalars["adaptive/resamples_by_difficulty/5"] == [(1, 3.0), (8, 3.0)]
        assert scalars["time/rollout"] == [(1, pytest.approx(0.3)), (8, pytest.approx(0.3))]
        assert {"loss", "adaptive/generated_tokens", "adaptive/sync_bytes", "step_time"} <= set(scalars)
        # No point for a metric that was not measured, and no curve for the nameless difficulty.
        assert not {"kl", "rewards/length/mean"} & set(scalars)
        assert not [tag for tag in scalars if tag.endswith("/")]

    def test_folder_in_use_is_refused_and_unchanged(self, tmp_path: Path) -> None:
        folder = tmp_path / "sums"
        RunWriter(folder, "first").close()
        with pytest.raises(ConfigError, match=r"run\.name='sums'.*not empty.*choose another run\.name"):
            RunWriter(folder, "second")
        assert (folder / "config.yaml").read_text() == "first"

    def test_empty_folder_is_accepted(self, tmp_path: Path) -> None:
        RunWriter(tmp_path, "run: {}\n").close()
        assert (tmp_path / "config.yaml").exists()

    def test_file_instead_of_a_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "sums").write_text("mine")
        with pytest.raises(ConfigError, match=r"run\.name='sums'"):
            RunWriter(tmp_path / "sums", "")

    def test_second_of_two_concurrent_runs_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Both find an empty folder before either writes.
        monkeypatch.setattr("adagrpo_ray.runs.writer._is_empty", lambda folder: True)
        RunWriter(tmp_path / "sums", "first").close()
        with pytest.raises(ConfigError, match=r"run\.name='sums'"):
            RunWriter(tmp_path / "sums", "second")
        assert (tmp_path / "sums" / "config.yaml").read_text() == "first"

    def test_folder_below_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ResourceError, match=r"cannot write .*file/sums .*set run\.output_dir"):
            RunWriter(tmp_path / "file" / "sums", "")

    def test_read_only_folder_is_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        try:
            try:
                (tmp_path / "probe").touch()
            except PermissionError:
                pass
            else:
                pytest.skip("this user may write into read-only folders")
            with pytest.raises(ResourceError, match="Permission denied"):
                RunWriter(tmp_path / "sums", "")
        finally:
            tmp_path.chmod(0o700)

    def test_error_names_a_folder_lost_during_the_run(self, tmp_path: Path) -> None:
        writer = RunWriter(tmp_path / "sums", "")
        (tmp_path / "sums").rename(tmp_path / "elsewhere")
        with pytest.raises(ResourceError, match=r"cannot write .*metrics\.jsonl"):
            writer.step(STEP)
        with pytest.raises(ResourceError, match=r"cannot write .*summary\.json"):
            writer.summary(run_summary(tmp_path))

    def test_summary_is_replaced_atomically(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        writer = RunWriter(tmp_path / "sums", "")
        writer.summary(run_summary(tmp_path))

        def full(source: Path, target: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        with pytest.raises(ResourceError, match="No space left on device"):
            writer.summary(replace(run_summary(tmp_path), steps=99))
        assert json.loads((tmp_path / "sums" / "summary.json").read_text())["steps"] == 12
        writer.close()


def ticking(*times: float) -> Callable[[], float]:
    """A clock that returns each of `times` once, and then always the last one."""
    left: Iterator[float] = iter(times)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now = next(left, now)
        return now

    return clock


class TestPlainConsole:
    def run(self, stream: io.TextIOBase, **kwargs: object) -> None:
        with Console(len(STEPS), stream, **kwargs) as console:  # type: ignore[arg-type]
            console.phase("starting 2 rollout actors ...")
            console.evaluation("before", BEFORE)
            for step in STEPS:
                console.step(step)
            console.evaluation("after", AFTER)
            console.summary(run_summary(Path("runs/sums")))

    def test_log_of_a_whole_run(self) -> None:
        stream = io.StringIO()
        self.run(stream, clock=lambda: 0.0)
        lines = stream.getvalue().splitlines()
        assert [line.rstrip() for line in lines] == [
            "[    0.0 s] starting 2 rollout actors ...",
            "held-out accuracy before: 0.250  2: 0.500  10: 0.000  (128 samples, 3.0 s)",
            "step  1/12  reward 0.062  accuracy 0.375  resamples 1  groups 6 ready 2 waiting"
            "  8,000 tokens/s  0:06 left  0.50 s",
            "step 12/12  reward 0.750  accuracy 0.375  resamples 12+1  groups 6 ready 2 waiting"
            "  8,000 tokens/s  0:00 left  0.50 s",
            "held-out accuracy after: 0.750  2: 1.000  10: 0.500  (128 samples, 2.0 s)",
            "",
            "run sums: 12 steps in 6.0 s",
            "",
            "held-out accuracy: 0.250 -> 0.750 (+0.500)",
            "  class  before  after  change  resamples  zero std: before  after",
            "  2       0.500  1.000  +0.500         12                 -      -",
            "  5           -      -       -         36             1.000  0.250",
            "  10      0.000  0.500  +0.500          0                 -      -",
            "",
            "resamples: 84 (by rung 78+6), of which 24 met the criterion (24+0); 12 groups never did",
            "  steps  resamples  mean reward",
            "  1-2            3        0.094",
            "  3-4            7        0.219",
            "  5-6           11        0.344",
            "  7-8           17        0.469",
            "  9-10          21        0.594",
            "  11-12         25        0.719",
            "",
            "tokens: 48,000 generated (12,000 by resamples), 38,400 trained; 800 for each informative group",
            "judge helpful, with evaluations: 108 requests, 12 completions without a score, 11,340 tokens, cost 1.5",
            "adapter: runs/sums/adapter",
            "run folder: runs/sums",
        ]

    @pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
    def test_log_has_no_control_characters(self, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
        monkeypatch.setenv(variable, "1")
        stream = io.StringIO()
        self.run(stream)
        assert all(c == "\n" or c.isprintable() for c in stream.getvalue())

    def test_fast_steps_print_one_line_a_second(self) -> None:
        stream = io.StringIO()
        # The console reads the clock twice before the first step.
        console = Console(100, stream, clock=ticking(0.0, 0.0, 0.3, 0.9, 1.2, 1.4, 2.3, 2.4))
        for step in STEPS[:7]:
            console.step(step)
        assert shown(stream) == [1, 4, 6]
        console.close()
        assert shown(stream) == [1, 4, 6, 7], "a run that ends early shows its last step too"
        console.close()
        assert shown(stream) == [1, 4, 6, 7]

    def test_slow_steps_print_one_line_each(self) -> None:
        stream = io.StringIO()
        console = Console(3, stream, clock=ticking(0.0, 5.0, 10.0, 15.0))
        for count, step in enumerate(STEPS[:3], 1):
            console.step(step)
            assert shown(stream) == list(range(1, count + 1))

    def test_log_replaces_characters_that_the_encoding_lacks(self) -> None:
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii")
        with Console(1, stream) as console:
            console.phase("loading \N{GREEK SMALL LETTER PI} ...")
            console.evaluation("before", replace(BEFORE, accuracy_by_difficulty={"\u96e3": 0.5}))
            console.step(STEP)
            summary = run_summary(Path("runs/\udcff\u96e3"))
            console.summary(replace(summary, eval_accuracy_by_difficulty_after={"\u96e3" * 200: 0.5}))
        assert b"loading ? ..." in raw.getvalue()
        assert b"runs/??" in raw.getvalue()

    def test_benchmarks_have_a_line_each_and_a_table_at_the_end(self) -> None:
        stream = io.StringIO()
        after = replace(ON_BENCHMARKS, accuracy=None, benchmark_accuracy={"gsm8k": 0.5, "aime24": 0.125})
        with Console(1, stream, clock=lambda: 0.0) as console:
            console.evaluation("before", ON_BENCHMARKS)
            console.evaluation("after", after)
            console.summary(summarize([STEP], ON_BENCHMARKS, after, name="x", folder=Path("x"), adapter=Path("y")))
        lines = [line.rstrip() for line in stream.getvalue().splitlines()]
        assert lines[:5] == [
            "held-out accuracy before: 0.250  2: 0.500  10: 0.000  (128 samples, 3.0 s)",
            "gsm8k accuracy before: 0.375  solved at least once: 0.500  cut off: 0.250  "
            "(400 samples, mean length 120.0)",
            "aime24 accuracy before: 0.000  solved at least once: 0.000  cut off: 1.000  "
            "(960 samples, 2 problems failed, mean length 900.5)",
            "gsm8k accuracy after: 0.500  solved at least once: 0.500  cut off: 0.250  "
            "(400 samples, mean length 120.0)",
            "aime24 accuracy after: 0.125  solved at least once: 0.000  cut off: 1.000  "
            "(960 samples, 2 problems failed, mean length 900.5)",
        ]
        table = lines.index("  benchmark  before  after  change")
        assert lines[table + 1 : table + 3] == [
            "  gsm8k       0.375  0.500  +0.125",
            "  aime24      0.000  0.125  +0.125",
        ]

    def test_names_of_a_data_set_are_escaped(self) -> None:
        stream = io.StringIO()
        with Console(1, stream) as console:
            console.evaluation("before", replace(BEFORE, accuracy_by_difficulty={"\x1b[2J[red]x": 0.5, "": 1.0}))
        assert stream.getvalue() == "held-out accuracy before: 0.250  %1B[2J[red]x: 0.500  (128 samples, 3.0 s)\n"

    def test_log_shows_prompts_and_groups_that_failed(self) -> None:
        stream, step = io.StringIO(), replace(STEP, groups_failed=3)
        with Console(1, stream, clock=lambda: 0.0) as console:
            console.evaluation("before", replace(BEFORE, failed=2))
            console.step(step)
            console.summary(summarize([step, step], None, None, name="x", folder=Path("x"), adapter=Path("y")))
        text = stream.getvalue()
        assert "(128 samples, 2 prompts failed, 3.0 s)" in text
        assert "groups 6 ready 2 waiting 3 failed  8,000 tokens/s" in text
        assert "failed: 6 groups, which could not be generated or scored\n" in text

    def test_log_shows_an_accuracy_not_evaluated(self) -> None:
        stream = io.StringIO()
        Console(1, stream).summary(summarize([STEP], None, None, name="x", folder=Path("x"), adapter=Path("y")))
        assert "held-out accuracy: not evaluated" in stream.getvalue()
        assert "nan" not in stream.getvalue()


def shown(stream: io.StringIO) -> list[int]:
    """The steps that have a line."""
    return [int(line.split()[1].split("/")[0]) for line in stream.getvalue().splitlines()]


class TestTerminalConsole:
    def run(self, stream: io.TextIOBase, width: int) -> None:
        with Console(len(STEPS), stream, terminal=True, width=width) as console:  # type: ignore[arg-type]
            console.phase("starting 2 rollout actors ...")
            for step in STEPS:
                console.step(step)
            console.evaluation("after", AFTER)
            console.summary(run_summary(Path("runs/sums")))

    @pytest.mark.parametrize("width", [40, 120])
    def test_terminal_shows_the_metrics(self, width: int) -> None:
        stream = io.StringIO()
        self.run(stream, width)
        text = stream.getvalue()
        for expected in (
            "0/12",
            "elapsed",
            "12/12",
            "0:00 left",
            "reward 0.750",
            "accuracy 0.375",
            "resamples 12+1",
            "8,000 tokens/s",
            "0.250 -> 0.750 (+0.500)",
            "by rung 78+6",
            "0.719",
            "runs/sums/adapter",
        ):
            assert expected in text, expected

    @pytest.mark.parametrize("width", [1, 2, 5, 10, 20])
    def test_narrow_windows_are_supported(self, width: int) -> None:
        stream = io.StringIO()
        self.run(stream, width)
        assert stream.getvalue().endswith("\n")

    def test_terminal_without_utf8(self) -> None:
        raw = io.BytesIO()
        self.run(io.TextIOWrapper(raw, encoding="ascii"), 40)
        assert b"reward 0.750" in raw.getvalue()
        assert b"?" not in raw.getvalue().replace(b"\x1b[?25", b"")

    def test_cursor_is_restored_when_a_run_fails(self) -> None:
        stream = io.StringIO()

        def broken() -> None:
            with Console(3, stream, terminal=True, width=80) as console:
                console.step(STEP)
                raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            broken()
        assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")

    def test_terminal_that_cannot_redraw_gets_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", "dumb")
        stream = Terminal()
        with Console(1, stream) as console:
            console.step(STEP)
        assert stream.getvalue().startswith("step 1/1  reward 0.250")


class TestObservers:
    def test_events_are_forwarded_in_order(self, tmp_path: Path) -> None:
        events: list[tuple[str, str, object]] = []

        class Recorder(Observer):
            def __init__(self, name: str) -> None:
                self.name = name

            def began(self, config: Config, folder: str) -> None:
                events.append((self.name, folder, config))

            def phase(self, text: str) -> None:
                events.append((self.name, "phase", text))

            def step(self, record: StepRecord) -> None:
                events.append((self.name, "step", record))

            def samples(self, groups: Sequence[GroupSample]) -> None:
                events.append((self.name, "samples", groups))

            def evaluation(self, label: str, record: EvaluationRecord) -> None:
                events.append((self.name, label, record))

            def summary(self, summary: Summary) -> None:
                events.append((self.name, "summary", summary))

            def ended(self, error: BaseException | None) -> None:
                events.append((self.name, "ended", error))

        both, config, error = Observers(Recorder("a"), Recorder("b")), Config(), ResourceError("no room")
        both.began(config, "runs/sums")
        both.phase("starting")
        both.step(STEP)
        both.samples([SAMPLE])
        both.evaluation("before", BEFORE)
        both.summary(run_summary(tmp_path))
        both.ended(error)
        expected = [
            ("runs/sums", config),
            ("phase", "starting"),
            ("step", STEP),
            ("samples", [SAMPLE]),
            ("before", BEFORE),
            ("summary", run_summary(tmp_path)),
            ("ended", error),
        ]
        assert events == [(name, *event) for event in expected for name in "ab"]

    def test_events_without_an_override_are_ignored(self, tmp_path: Path) -> None:
        received: list[StepRecord] = []

        class Steps(Observer):
            def step(self, record: StepRecord) -> None:
                received.append(record)

        steps = Observers(Steps())
        with run_events(steps, Config(), "runs/sums"):
            steps.phase("starting")
            steps.evaluation("before", BEFORE)
            steps.step(STEP)
            steps.samples([SAMPLE])
            steps.summary(run_summary(tmp_path))
        assert received == [STEP]

    @pytest.mark.parametrize("error", [None, ResourceError("no room"), KeyboardInterrupt()])
    def test_end_of_a_run_reaches_all_observers_and_its_error_is_raised(self, error: BaseException | None) -> None:
        received: list[object] = []

        class Ends(Observer):
            def began(self, config: Config, folder: str) -> None:
                received.append((config, folder))

            def ended(self, error: BaseException | None) -> None:
                received.append(error)
                raise OSError("the tracker is gone")

        def run(observer: Observer) -> None:
            with run_events(observer, config, "runs/sums"):
                if error is not None:
                    raise error

        config = Config()
        with pytest.raises(type(error or OSError())) as raised:
            run(Observers(Ends(), Ends()))
        assert received == [(config, "runs/sums")] * 2 + [error] * 2
        assert raised.value is error or error is None


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (3599.0, "59:59"), (3722.0, "1:02:02")])
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_difficulties_are_sorted_by_their_numbers() -> None:
    assert wording.difficulties(["10", "2", "level 3", "", "level 12", "2", "hard"]) == [
        "2",
        "10",
        "hard",
        "level 3",
        "level 12",
    ]


def test_run_that_fails_before_its_first_record_leaves_no_folder(tmp_path: Path) -> None:
    def fail(writer: RunWriter, *records: StepRecord) -> None:
        for record in records:
            writer.step(record)
        raise ResourceError("no room")

    with pytest.raises(ResourceError), RunWriter(tmp_path / "run", "a: 1\n") as writer:
        fail(writer)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ResourceError), RunWriter(tmp_path / "run", "a: 1\n") as writer:
        fail(writer, STEP)
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
