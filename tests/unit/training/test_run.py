"""Events at the beginning and end of a run; the training between them is replaced here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.cluster.placement import Hardware, place
from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.errors import ConfigError, LearnerLostError, RewardError
from adagrpo_ray.runs import Observer
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.preflight import Inputs
from adagrpo_ray.training.run import run
from adagrpo_ray.training.start import place_and_train

LOST = LearnerLostError("a learner rank died")


class Recorder(Observer):
    """Records beginning and end, and the content of the run's folder at the beginning."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def began(self, config: Config, folder: str) -> None:
        self.events.append((config.run.name, folder, sorted(path.name for path in Path(folder).iterdir())))

    def ended(self, error: BaseException | None) -> None:
        self.events.append(error)


def events_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ends: Sequence[BaseException | None]
) -> tuple[list[Any], Any]:
    """The events of a run in `folder` whose attempts at training end with `ends`, and the error that it raises."""
    left = iter(ends)

    def train(*args: Any) -> None:
        if (error := next(left)) is not None:
            raise error

    monkeypatch.setattr(
        "adagrpo_ray.training.resolve.check", lambda config, given, **_: Inputs("tiny", PromptSets((), (), {}), 128)
    )
    monkeypatch.setattr("adagrpo_ray.training.run.place_and_train", train)
    recorder = Recorder()
    config = Config.load(None, [f"run.output_dir={folder}", "run.name=one", "run.max_restarts=1", "run.report=false"])
    raised: BaseException | None = None
    try:
        run(config, recorder)
    except (RewardError, LearnerLostError, ConfigError, KeyboardInterrupt) as error:
        raised = error
    return recorder.events, raised


@pytest.mark.parametrize("error", [None, RewardError("no"), KeyboardInterrupt()])
def test_began_follows_the_folder_and_ended_follows_any_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    events, raised = events_of(tmp_path, monkeypatch, [error])
    assert events == [("one", f"{tmp_path}/one", ["config.yaml", "metrics.jsonl", "tensorboard"]), error]
    assert raised is error


@pytest.mark.faults
@pytest.mark.parametrize("last", [None, LOST])
def test_a_restarted_run_is_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: BaseException | None
) -> None:
    (began, *ended), raised = events_of(tmp_path, monkeypatch, [LOST, last])
    assert (began[:2], ended, raised) == (("one", f"{tmp_path}/one"), [last], last)


def test_nodes_must_share_only_the_folder_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(folder: str) -> None:
        raise InterruptedError(folder)

    config = Config.model_validate({"run": {"output_dir": "elsewhere"}})
    placement = place(config.rollout, config.learner, Hardware(4, 0), ours=False)
    monkeypatch.setattr("adagrpo_ray.training.start.connect", lambda *_: nullcontext(placement))
    monkeypatch.setattr("adagrpo_ray.training.start.check_shared", share)
    inputs = Inputs("tiny", PromptSets((), (), {}), 128, joined="10.0.0.2:6379")
    with pytest.raises(InterruptedError, match=r"^s3://bucket/resumed$"):
        place_and_train(config, inputs, Path("copy"), Observer(), None, Stop(), "s3://bucket/resumed", 0.0)


def test_a_run_without_a_folder_has_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "mine").touch()
    events, raised = events_of(tmp_path, monkeypatch, [None])
    assert (events, type(raised)) == ([], ConfigError)
