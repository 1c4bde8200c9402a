"""Checkpoints on disk are exact and complete or absent; the settings and lines that belong to them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.algorithm.posterior import ClassResults, PromptResults
from adagrpo_ray.algorithm.rungs import RungResults
from adagrpo_ray.algorithm.statistics import statistics_of
from adagrpo_ray.checkpoint.files import load, newest, save, set_latest
from adagrpo_ray.checkpoint.resume import FOLDER, find_past, progress_of
from adagrpo_ray.checkpoint.sampler_state import from_plain, to_plain
from adagrpo_ray.config import Config
from adagrpo_ray.config.fixed import FREE, check_fixed, fixed_settings
from adagrpo_ray.data.order import IDS
from adagrpo_ray.errors import CheckpointError, ConfigError, HistoryError
from adagrpo_ray.runs import RunWriter, StepRecord, retries
from adagrpo_ray.runs.history import Mark, sizes
from adagrpo_ray.types import SamplingParams
from tests.support.builders import make_attempt, make_episode, make_group, make_prompt
from tests.support.histories import BEFORE, SAMPLE, STEP
from tests.support.places import TINY

CONTENTS = {"state.json": {"third": 1 / 3}, "adapter.safetensors": {"a": np.arange(3, dtype=np.float32) / 3}}
PROMPTS = {name: make_prompt(name, difficulty="5 digits") for name in ("p", "q")}
HOT = SamplingParams(temperature=1.3, min_p=0.1, answer=SamplingParams(temperature=0.7))


def exact(value: Any) -> Any:
    """Return a value for which == compares bit by bit, also with NaN."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if is_dataclass(value):
        return {field.name: exact(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    return [exact(item) for item in value] if isinstance(value, list | tuple) else value


def silent(text: str) -> None:
    raise AssertionError(text)


class TestSampler:
    def state(self) -> dict[str, Any]:
        """Return a state with a group that failed twice, with an episode, and one that was never sampled."""
        first = make_attempt([0.1, 0.2], by_function=[[0.1, math.nan], [0.2, 0.3]], correct=[False, False])
        second = make_attempt([0.0, 0.0], rung=0, sampling=HOT, lengths=[0, 5])
        episode = make_episode((2, 2), (1, 0), error="\ud800")
        odd = replace(episode, text='"\ud800 \u2028\0\n', weight_version=3, finish_reason="length")
        second = replace(second, completions=(second.completions[0], odd))
        groups = [make_group(first, second, prompt=PROMPTS["q"], epoch=7), make_group(prompt=PROMPTS["p"])]
        return {
            "prompts": {"taken": 41, "ids": IDS},
            "waiting": groups,
            "planned": [replace(make_group(prompt=PROMPTS["q"], epoch=8), chance=0.1 + 0.2)],
            "results": {"p": PromptResults(0.1 + 0.2, 2.0, 1 / 3)},
            "classes": {"": ClassResults(), "5 digits": ClassResults(0.1 + 0.2, 8.0, 1e-17, 1 / 3, -1 / 7, 0.0)},
            "rungs": {"5 digits": {-1: RungResults(0.1 + 0.2, 8.0), 0: RungResults(1 / 3, 1e-17)}, "": {}},
        }

    def test_state_is_restored_bit_by_bit(self, tmp_path: Path) -> None:
        plain, arrays = to_plain(self.state())
        save(tmp_path, 1, {"sampler.json": plain, "sampler.safetensors": arrays}, 1)
        files = load(tmp_path / "step-000001")
        back = from_plain(files["sampler.json"], files["sampler.safetensors"], PROMPTS)
        assert exact(back) == exact(self.state())
        assert back["waiting"][0].prompt is PROMPTS["q"]
        assert statistics_of(back["waiting"][0]).count == 4

    def test_a_pilot_keeps_its_part_and_older_checkpoints_have_whole_attempts(self) -> None:
        pilot = make_group(make_attempt([0.0, 1.0], part="pilot"), prompt=PROMPTS["p"])
        plain, arrays = to_plain({**self.state(), "waiting": [pilot]})
        assert [a.part for a in from_plain(plain, arrays, PROMPTS)["waiting"][0].attempts] == ["pilot"]
        del plain["waiting"][0]["attempts"][0]["part"]
        assert [a.part for a in from_plain(plain, arrays, PROMPTS)["waiting"][0].attempts] == ["whole"]

    def test_empty_state_is_restored(self, tmp_path: Path) -> None:
        empty: dict[str, Any] = {"prompts": {"taken": 0, "ids": IDS}}
        empty |= {"waiting": [], "planned": [], "results": {}, "classes": {}, "rungs": {}}
        plain, arrays = to_plain(empty)
        save(tmp_path, 1, {"sampler.json": plain, "sampler.safetensors": arrays}, 1)
        files = load(tmp_path / "step-000001")
        assert from_plain(files["sampler.json"], files["sampler.safetensors"], {}) == empty

    def test_waiting_groups_keep_their_prompt_tokens(self) -> None:
        plain, arrays = to_plain(self.state())
        tomorrow = {name: replace(p, token_ids=p.token_ids + 1) for name, p in PROMPTS.items()}
        sampled, fresh = from_plain(plain, arrays, tomorrow)["waiting"]
        assert sampled.prompt.token_ids.tolist() == PROMPTS["q"].token_ids.tolist()
        assert fresh.prompt is tomorrow["p"]

    def test_state_of_a_version_without_planned_groups_is_read(self) -> None:
        plain, arrays = to_plain(self.state())
        del plain["planned"], plain["waiting"][0]["chance"]
        back = from_plain(plain, arrays, PROMPTS)
        assert (back["planned"], back["waiting"][0].chance) == ([], None)

    def test_state_of_a_version_without_results_of_rungs_is_read(self) -> None:
        plain, arrays = to_plain(self.state())
        del plain["rungs"]
        assert from_plain(plain, arrays, PROMPTS)["rungs"] == {}

    def test_groups_to_replay_of_an_earlier_version_are_left_out(self) -> None:
        plain, arrays = to_plain(self.state())
        plain["replay"] = [{"group": plain["waiting"][0], "step": 9, "times": 1}]
        arrays |= {f"replay{name}": array for name, array in arrays.items() if name.startswith("0.")}
        assert exact(from_plain(plain, arrays, PROMPTS)) == exact(self.state())

    def test_results_of_a_version_with_other_classes_are_read(self) -> None:
        plain, arrays = to_plain(self.state())
        del plain["results"], plain["classes"]
        plain |= {"posteriors": {"p": {"correct": 0.5, "wrong": 2.0}}, "difficulties": {"": {"correct": 1, "wrong": 0}}}
        back = from_plain(plain, arrays, PROMPTS)
        assert (back["results"], back["classes"]) == ({"p": PromptResults(0.5, 2.0)}, {})

    def test_ids_of_other_version_are_refused(self) -> None:
        plain, arrays = to_plain(self.state())
        del plain["prompts"]["ids"]
        with pytest.raises(CheckpointError, match="a version that names prompts in another way"):
            from_plain(plain, arrays, PROMPTS)

    def test_missing_prompt_is_named(self) -> None:
        plain, arrays = to_plain(self.state())
        with pytest.raises(CheckpointError, match=r"the prompt q, .*data\.source"):
            from_plain(plain, arrays, {"p": PROMPTS["p"]})


class TestFiles:
    def test_saved_files_are_loaded(self, tmp_path: Path) -> None:
        save(tmp_path, 12, CONTENTS, 2)
        files = load(tmp_path / "step-000012")
        assert files["state.json"] == CONTENTS["state.json"]
        assert exact(files["adapter.safetensors"]) == exact(CONTENTS["adapter.safetensors"])
        assert newest(tmp_path, silent) == tmp_path / "step-000012"
        assert (tmp_path / "latest").read_text() == "step-000012\n"

    def test_newest_checkpoints_are_kept(self, tmp_path: Path) -> None:
        for step in (8, 9, 10, 1_000_000):
            save(tmp_path, step, CONTENTS, 2)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000010", "step-1000000"]
        assert newest(tmp_path, silent) == tmp_path / "step-1000000"

    def test_missing_folder_has_no_checkpoint(self, tmp_path: Path) -> None:
        assert newest(tmp_path / "none", silent) is None

    def test_unfinished_folder_is_no_checkpoint(self, tmp_path: Path) -> None:
        save(tmp_path, 1, CONTENTS, 2)
        shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000002.part")
        assert newest(tmp_path, silent) == tmp_path / "step-000001"
        save(tmp_path, 2, CONTENTS, 2)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000001", "step-000002"]

    def test_checkpoint_is_ignored_until_latest_names_it(self, tmp_path: Path) -> None:
        save(tmp_path, 1, CONTENTS, 2)
        shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000002")
        assert newest(tmp_path, silent) == tmp_path / "step-000001"

    @pytest.mark.parametrize("text", [None, "", "\0\xff", "step-000009", "../step-000001"])
    def test_all_checkpoints_count_without_latest(self, tmp_path: Path, text: str | None) -> None:
        save(tmp_path, 1, CONTENTS, 2)
        save(tmp_path, 2, CONTENTS, 2)
        (tmp_path / "latest").unlink()
        if text is not None:
            (tmp_path / "latest").write_text(text, encoding="latin-1")
        assert newest(tmp_path, silent) == tmp_path / "step-000002"

    def test_run_reset_to_earlier_step_overwrites_later_ones(self, tmp_path: Path) -> None:
        for step in (1, 2, 3):
            save(tmp_path, step, CONTENTS, 3)
        set_latest(tmp_path / "step-000001")
        assert newest(tmp_path, silent) == tmp_path / "step-000001"
        again = {"state.json": {"again": True}}
        save(tmp_path, 2, again, 3)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000001", "step-000002"]
        assert load(tmp_path / "step-000002")["state.json"] == {"again": True}

    def test_checkpoints_of_abandoned_steps_are_removed(self, tmp_path: Path) -> None:
        for step in (1, 2, 3):
            save(tmp_path, step, CONTENTS, 3, {1: 0.25, 2: 0.75, 3: 0.5})
        set_latest(tmp_path / "step-000001")
        save(tmp_path, 4, CONTENTS, 3, {1: 0.25, 4: 0.125})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "latest", "step-000001", "step-000004"]
        assert (tmp_path / "best").read_text() == "step-000001\n"

    def test_unfinished_folder_of_killed_run_is_removed(self, tmp_path: Path) -> None:
        for name in ("step-000001.part", "step-000007.part"):
            (tmp_path / name).mkdir()
        save(tmp_path, 8, CONTENTS, 3)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000008"]

    def test_best_checkpoint_is_kept(self, tmp_path: Path) -> None:
        accuracies: dict[int, float] = {0: 1.0}
        found = []
        for step, accuracy in enumerate((0.25, None, 0.5, 0.5, 0.25, None, 0.75), 1):
            if accuracy is not None:
                accuracies[step] = accuracy
            save(tmp_path, step, CONTENTS, 1, accuracies)
            names = sorted(path.name for path in tmp_path.glob("step-*"))
            found.append(((tmp_path / "best").read_text().strip()[-1], [name[-1] for name in names]))
        assert found == [
            *(("1", ["1"]), ("1", ["1", "2"]), ("3", ["3"]), ("3", ["3", "4"])),
            *(("3", ["3", "5"]), ("3", ["3", "6"]), ("7", ["7"])),
        ]
        save(tmp_path, 8, CONTENTS, 1)  # as if keep_best was turned off
        assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000008"]

    def test_best_checkpoint_after_kill_between_writes(self, tmp_path: Path) -> None:
        save(tmp_path, 1, CONTENTS, 1, {1: 0.25})
        save(tmp_path, 2, CONTENTS, 1)
        save(tmp_path / "other", 1, CONTENTS, 1)
        (tmp_path / "other" / "step-000001").rename(tmp_path / "step-000001")  # not removed yet
        (tmp_path / "best").write_text("step-000001\n")  # not moved yet
        save(tmp_path, 3, CONTENTS, 1, {1: 0.25, 2: 0.75, 3: 0.5})
        assert (tmp_path / "best").read_text() == "step-000002\n"
        assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000002", "step-000003"]

    @pytest.mark.parametrize("extra", ["more.json", "a folder"])
    def test_extra_file_is_detected(self, tmp_path: Path, extra: str) -> None:
        save(tmp_path, 1, CONTENTS, 2)
        save(tmp_path, 2, CONTENTS, 2)
        path = tmp_path / "step-000002" / extra
        path.mkdir() if extra == "a folder" else path.write_text("{}")
        notices: list[str] = []
        assert newest(tmp_path, notices.append) == tmp_path / "step-000001"
        assert ["step-000002 is damaged" in text for text in notices] == [True]

    def test_change_of_any_byte_is_detected(self, tmp_path: Path) -> None:
        save(tmp_path, 1, CONTENTS, 2)
        save(tmp_path, 2, CONTENTS, 2)
        notices: list[str] = []
        files = sorted((tmp_path / "step-000002").iterdir())
        assert [f.name for f in files] == ["adapter.safetensors", "checksums.json", "state.json"]
        for file in files:
            good = file.read_bytes()
            for place in range(len(good)):
                file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
                notices.clear()
                assert newest(tmp_path, notices.append) == tmp_path / "step-000001"
                assert [text for text in notices if "step-000002 is damaged" in text] == notices != []
            file.write_bytes(good)
        assert newest(tmp_path, silent) == tmp_path / "step-000002"

    @pytest.mark.parametrize("name", ["adapter.safetensors", "checksums.json", "state.json"])
    @pytest.mark.parametrize("harm", ["cut", "remove"])
    def test_missing_file_is_detected(self, tmp_path: Path, name: str, harm: str) -> None:
        save(tmp_path, 1, CONTENTS, 1)
        file = tmp_path / "step-000001" / name
        if harm == "cut":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.unlink()
        with pytest.raises(CheckpointError, match="step-000001 is damaged, incomplete"):
            load(tmp_path / "step-000001")
        with pytest.raises(CheckpointError, match=r"all 1 checkpoints in .* are damaged; restore one"):
            newest(tmp_path, lambda text: None)

    def test_full_disk_keeps_earlier_checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path, 1, CONTENTS, 1)

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*step-000002 \(No space left on device\)"):
            save(tmp_path, 2, CONTENTS, 1)
        assert newest(tmp_path, silent) == tmp_path / "step-000001"


class TestSettings:
    def test_same_settings_are_accepted(self) -> None:
        kept = json.loads(json.dumps(fixed_settings(Config.load(TINY))))
        check_fixed(Config.load(TINY), kept)
        assert kept == fixed_settings(Config.load(TINY))

    def test_free_settings_exist_and_may_change(self) -> None:
        changes = ["run.steps=7", "run.name=x", "rollout.actors=3", "learner.ranks=2", "checkpoint.every=5"]
        changes += ["rewards.on_error=stop", "rewards.timeout_s=60", "rewards.memory_gib=null", "rewards.workers=2"]
        check_fixed(Config.load(TINY, changes), fixed_settings(Config.load(TINY)))
        tree = Config.load(TINY).model_dump()
        assert {*tree, *(f"{section}.{key}" for section, values in tree.items() for key in values)} >= FREE

    def test_every_differing_key_is_named(self) -> None:
        changed = Config.load(TINY, ["learner.learning_rate=1e-3", "algorithm.triggers=[]"])
        with pytest.raises(ConfigError, match=r"learning_rate was 0\.0002 and is 0\.001") as raised:
            check_fixed(changed, fixed_settings(Config.load(TINY)))
        assert "algorithm.triggers was" in str(raised.value)

    def test_setting_of_other_version_is_named(self) -> None:
        before = fixed_settings(Config.load(TINY))
        before["learner.gone"] = before.pop("learner.betas")
        with pytest.raises(ConfigError, match=r"learner\.gone was .* and is 'nothing'"):
            check_fixed(Config.load(TINY), before)


class TestLines:
    STEPS = tuple(replace(STEP, step=step) for step in (1, 2, 3))

    def test_record_round_trip_is_exact(self) -> None:
        record = replace(STEP, grad_norm=0.1)
        assert exact(StepRecord.from_dict(json.loads(json.dumps(record.to_dict())))) == exact(record)

    def test_folder_is_read_and_cut_at_mark(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        with RunWriter(folder, "first") as writer:
            writer.evaluation("before", BEFORE)
            writer.step(self.STEPS[0])
            writer.samples([SAMPLE, SAMPLE])
            mark = Mark(1, sizes(folder))
            writer.step(self.STEPS[1])
            writer.samples([SAMPLE])
            writer.evaluation("after", BEFORE)
        steps, evaluations = mark.read(folder)
        assert ([s.step for s in steps], evaluations) == ([1], [BEFORE])
        with RunWriter(folder, "second", mark) as writer:
            writer.step(self.STEPS[1])
        assert (folder / "config.yaml").read_text() == "second"
        assert [s.step for s in Mark(2, sizes(folder)).read(folder)[0]] == [1, 2]
        assert len((folder / "evaluations.jsonl").read_text().splitlines()) == 1
        assert len((folder / "samples.jsonl").read_text().splitlines()) == 2

    @pytest.mark.parametrize("left", [None, 0, 1])
    def test_run_resumes_with_missing_samples(self, tmp_path: Path, left: int | None) -> None:
        with RunWriter(tmp_path, "") as writer:
            writer.step(self.STEPS[0])
            writer.samples([SAMPLE] * 2)
        mark, file = Mark(1, sizes(tmp_path)), tmp_path / "samples.jsonl"
        line = file.read_text().splitlines(keepends=True)[0]
        if left is None:
            file.unlink()
        else:
            file.write_text(line * left)
        assert len(mark.read(tmp_path)[0]) == 1
        with RunWriter(tmp_path, "", mark) as writer:
            writer.samples([SAMPLE])
        assert file.read_text() == line * ((left or 0) + 1)

    def test_run_without_samples_file_resumes(self, tmp_path: Path) -> None:
        with RunWriter(tmp_path, "") as writer:
            writer.step(self.STEPS[0])
        mark = Mark(1, sizes(tmp_path))
        assert "samples.jsonl" not in mark.sizes
        for _ in range(2):
            with RunWriter(tmp_path, "", mark) as writer:
                writer.samples([SAMPLE])
        assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1

    def test_mark_before_first_step_removes_all_lines(self, tmp_path: Path) -> None:
        with RunWriter(tmp_path, "first") as writer:
            writer.evaluation("before", BEFORE)
            writer.step(self.STEPS[0])
        RunWriter(tmp_path, "second", Mark(-1, {})).close()
        assert sizes(tmp_path) == {"metrics.jsonl": 0, "evaluations.jsonl": 0}

    def test_lost_lines_are_an_error(self, tmp_path: Path) -> None:
        with RunWriter(tmp_path, "") as writer:
            writer.step(self.STEPS[0])
        mark = Mark(1, sizes(tmp_path))
        (tmp_path / "metrics.jsonl").write_text("")
        with pytest.raises(CheckpointError, match=r"up to step 1 .*has 0 bytes of"):
            mark.read(tmp_path)


class TestFindPast:
    def configure(self, tmp_path: Path, *overrides: str) -> Config:
        return Config.load(TINY, [f"run.output_dir={tmp_path}", "run.name=run", "run.steps=2", *overrides])

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A run with checkpoints after its two steps."""
        config, records = self.configure(tmp_path), [replace(STEP, step=1), replace(STEP, step=2)]
        folder = tmp_path / "run"
        with RunWriter(folder, "") as writer:
            for number, record in enumerate(records, 1):
                writer.step(record)
                state = exact(progress_of(config, folder, records[:number]))
                save(folder / FOLDER, number, {"state.json": state}, 2)
        return folder

    @pytest.fixture
    def notices(self) -> list[str]:
        return []

    @pytest.mark.parametrize("where", ["auto", "", FOLDER + "/step-000002"])
    def test_newest_checkpoint_is_found(self, tmp_path: Path, folder: Path, notices: list[str], where: str) -> None:
        past = find_past("auto" if where == "auto" else str(folder / where), self.configure(tmp_path), notices.append)
        assert (past.folder, past.checkpoint) == (folder, folder / FOLDER / "step-000002")
        assert (past.mark.step, [r.step for r in past.records], past.evaluations) == (2, [1, 2], ())
        assert notices == [f"resuming after step 2, from {past.checkpoint}"]

    def test_damaged_checkpoint_is_passed_over_with_notice(
        self, tmp_path: Path, folder: Path, notices: list[str]
    ) -> None:
        (folder / FOLDER / "step-000002" / "state.json").write_text("{}")
        past = find_past("auto", self.configure(tmp_path), notices.append)
        assert past.checkpoint == folder / FOLDER / "step-000001"
        assert "step-000002 is damaged" in notices[0]
        past.writer("taken back", silent).close()
        assert (folder / "config.yaml").read_text() == "taken back"
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
        assert (folder / FOLDER / "latest").read_text() == "step-000001\n"

    def test_damaged_checkpoint_given_by_path_is_an_error(self, tmp_path: Path, folder: Path) -> None:
        path = folder / FOLDER / "step-000002"
        (path / "state.json").write_text("{}")
        with pytest.raises(CheckpointError, match="step-000002 is damaged"):
            find_past(str(path), self.configure(tmp_path), silent)

    def test_best_checkpoint_is_found_by_name(self, tmp_path: Path, folder: Path, notices: list[str]) -> None:
        best = folder / FOLDER / "best"
        best.write_text("step-000001\n")
        for where in (best, best.as_uri()):
            past = find_past(str(where), self.configure(tmp_path), notices.append)
            assert past.checkpoint == folder / FOLDER / "step-000001"
        shutil.rmtree(folder / FOLDER / "step-000001")
        with pytest.raises(CheckpointError, match="step-000001 is damaged, incomplete or missing"):
            find_past(str(best), self.configure(tmp_path), silent)
        for text in ("", "\0\xff", "../step-000002"):
            best.write_text(text, encoding="latin-1")
            with pytest.raises(CheckpointError, match=f"{best} does not name a checkpoint; give the folder"):
                find_past(str(best), self.configure(tmp_path), silent)
        best.unlink()
        with pytest.raises(CheckpointError, match="best has no checkpoints; give --resume"):
            find_past(str(best), self.configure(tmp_path), silent)

    def test_run_may_be_named_best(self, tmp_path: Path, folder: Path, notices: list[str]) -> None:
        folder.rename(tmp_path / "best")
        past = find_past(str(tmp_path / "best"), self.configure(tmp_path), notices.append)
        assert past.folder == tmp_path / "best"

    def test_auto_starts_run_without_checkpoint(self, tmp_path: Path, notices: list[str]) -> None:
        past = find_past("auto", self.configure(tmp_path), notices.append)
        assert (past.folder, past.checkpoint, past.mark.step) == (tmp_path / "run", None, -1)
        assert "beginning with the first step" in notices[0]

    def test_auto_needs_run_name(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"run\.name, which is not set"):
            find_past("auto", self.configure(tmp_path, "run.name=null"), silent)

    def test_folder_without_checkpoint_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="has no checkpoints; give --resume"):
            find_past(str(tmp_path), self.configure(tmp_path), silent)

    @pytest.mark.parametrize(
        ("override", "message"), [("run.seed=1", r"run\.seed was 0 and is 1"), ("run.steps=1", r"run\.steps=1 is less")]
    )
    def test_other_settings_are_refused(self, tmp_path: Path, folder: Path, override: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            find_past(str(folder), self.configure(tmp_path, override), silent)

    @pytest.mark.parametrize("override", ["run.seed=0", "run.seed=1"])
    def test_run_of_older_version_is_refused(self, tmp_path: Path, folder: Path, override: str) -> None:
        """The version is checked before the settings, which may have had other names."""
        metrics = folder / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"reward":', '"reword":'))
        wanted = (
            r"run was written by an older version of adagrpo_ray \(no 'reward', but 'reword'\); resume it with that "
            r"version, or begin a new run from its adapter \(model\.adapter\)"
        )
        for where in (str(folder), "auto", str(folder / FOLDER / "step-000001")):
            with pytest.raises(HistoryError, match=wanted):
                find_past(where, self.configure(tmp_path, override), silent)
        assert len(metrics.read_text().splitlines()) == 2


def test_retries_sum_up_the_cost_and_the_results_of_resamples() -> None:
    assert retries([replace(STEP, step=1), replace(STEP, step=2)]).to_dict() == {
        "rescued": [4, 0],
        "extra_tokens": 2000,
        "tokens_per_informative_group": 800.0,
        "groups_exhausted": 2,
    }
    assert retries([]).tokens_per_informative_group is None
