"""docs/python.md run as a notebook: its cells in order, in a running event loop and a main module without a file.

The notebook starts one Ray, which all runs share, together with its actors, which are started only once.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
import yaml

from adagrpo_ray import Callback, Config, ExtensionError, ResourceError, StepRecord, StoppedError, Summary, train
from adagrpo_ray.cluster.authentication import own_token
from adagrpo_ray.cluster.joining import find_ray
from adagrpo_ray.config.run_settings import RunSettings
from adagrpo_ray.training import actors as cluster
from adagrpo_ray.training import run, start
from adagrpo_ray.training.actors import Actors
from tests.support.places import ROOT

pytestmark = pytest.mark.long

CELL = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Notebook:
    """The executed notebook.

    main: the main module of its cells.
    summaries: the summary that each cell returned; None for cells without a run.
    output: standard output of all cells.
    """

    main: ModuleType
    summaries: tuple[Summary | None, ...]
    output: str


def run_cell(main: ModuleType, code: str, line: int = 0) -> None:
    """Run a cell as a notebook does, inside a running event loop."""
    compiled = compile("\n" * line + code, "docs/python.md", "exec", dont_inherit=True)

    async def cell() -> None:
        assert asyncio.get_running_loop().is_running()
        exec(compiled, vars(main))

    asyncio.run(cell())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """Start Ray before the runs, and make it the first run that starts the actors of all; the current folder."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "launch").symlink_to(ROOT / "launch")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(folder)
        stack.enter_context(own_token())
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        stack.callback(ray.shutdown)
        made: list[Actors] = []

        @contextmanager
        def again(config: Config, placement: Any, inputs: Any, stop: Any, home: str) -> Iterator[Actors]:
            if made:
                cluster.begin(config, made[0], inputs, stop)
            else:
                made.append(stack.enter_context(cluster.actors(config, placement, inputs, stop, home)))
            yield made[0]

        patch.setattr(start, "actors", again)
        patch.setattr(run, "_report", lambda *_: None)  # takes one or two seconds; tested in test_report.py
        yield folder


@pytest.fixture(scope="module")
def notebook(shared: Path) -> Notebook:
    """The executed notebook with all cells of the page."""
    text = (ROOT / "docs" / "python.md").read_text()
    main = ModuleType("__main__")
    summaries: list[Summary | None] = []
    with pytest.MonkeyPatch.context() as patch, (shared / "output").open("w+") as output:
        patch.setitem(sys.modules, "__main__", main)
        patch.setattr(sys, "stdout", output)
        for cell in CELL.finditer(text):
            before = {id(value) for value in vars(main).values()}
            run_cell(main, cell[1], text.count("\n", 0, cell.start(1)))
            made = (v for v in vars(main).values() if isinstance(v, Summary) and id(v) not in before)
            summaries.append(next(made, None))
        output.seek(0)
        return Notebook(main, tuple(summaries), output.read())


def settings(summary: Summary | None) -> dict[str, Any]:
    assert summary is not None
    return yaml.safe_load((Path(summary.folder) / "config.yaml").read_text())  # type: ignore[no-any-return]


def steps(summary: Summary | None) -> list[dict[str, Any]]:
    assert summary is not None
    return [json.loads(line) for line in (Path(summary.folder) / "metrics.jsonl").read_text().splitlines()]


def test_first_cell_trains_and_prints_progress(notebook: Notebook, shared: Path) -> None:
    summary = notebook.summaries[0]
    assert summary is not None
    assert summary.steps == 2
    assert (Path(summary.adapter) / "adapter_model.safetensors").exists()
    assert Path(summary.folder).parent == shared / "runs"
    assert "step 2/2" in notebook.output
    assert "\x1b" not in notebook.output
    assert f"adapter in {summary.adapter}" in notebook.output


def test_running_ray_is_joined_and_left_running(notebook: Notebook) -> None:
    assert ray.is_initialized()
    assert settings(notebook.summaries[0])["run"]["ray_address"] is None


def test_reward_function_of_a_cell_has_its_configured_weight(notebook: Notebook) -> None:
    summary = notebook.summaries[1]
    named = settings(summary)["rewards"]["functions"]
    assert [(f["function"], f["weight"]) for f in named] == [("brief", 0.1), ("exact", 1.0)]
    for step in steps(summary):
        brief, exact = (step["rewards_mean"][name] for name in ("brief", "exact"))
        assert step["groups_failed"] == 0
        assert 0 <= brief <= 1
        assert step["reward"] == pytest.approx(0.1 * brief + exact, abs=1e-5)


def test_criterion_and_ladder_of_a_cell_are_used(notebook: Notebook) -> None:
    summary = notebook.summaries[2]
    algorithm = settings(summary)["algorithm"]
    assert (algorithm["criterion"]["kind"], algorithm["ladder"]) == ("two_right", "by_difficulty")
    assert sum(sum(step["resamples"]) for step in steps(summary)) > 0


def test_stop_set_by_a_callback_ends_the_run_completely(notebook: Notebook) -> None:
    summary = notebook.summaries[4]
    assert summary is not None
    assert summary.steps == len(steps(summary)) < 100
    assert summary.generated_tokens >= 500 > summary.generated_tokens - steps(summary)[-1]["generated_tokens"]
    folder = Path(summary.folder)
    assert (folder / "checkpoints" / "latest").read_text() == f"step-{summary.steps:06d}\n"
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert json.loads((folder / "summary.json").read_text())["steps"] == summary.steps
    assert f"{summary.steps} of 100 steps" in notebook.output


def test_cell_resumes_a_run(notebook: Notebook) -> None:
    summary = notebook.summaries[5]
    assert summary is not None
    assert [step["step"] for step in steps(summary)] == [1, 2, 3]
    assert summary.folder == notebook.main.first.folder
    assert "resuming after step 2" in notebook.output


# --- errors, on the same Ray

FEW = {"run.steps": 3, "data.eval_prompts": 0, "algorithm.prompts_per_step": 4}


def load(**others: object) -> Config:
    return Config.load(ROOT / "launch" / "configs" / "tiny-cpu.yaml", {**FEW, **others})


class At(Callback):
    """Calls `do` after step `step`, and records the errors of `ended`."""

    def __init__(self, step: int, do: Callable[[], object]) -> None:
        self.at, self.do = step, do
        self.errors: list[BaseException | None] = []

    def step(self, record: StepRecord) -> None:
        if record.step == self.at:
            self.do()

    def ended(self, error: BaseException | None) -> None:
        self.errors.append(error)


def test_interrupted_cell_leaves_a_checkpoint(shared: Path) -> None:
    """test_notebook.py tests that another cell resumes it."""
    before = signal.getsignal(signal.SIGINT)
    interrupt = At(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(StoppedError) as raised:
        train(load(), name="interrupted", callbacks=[interrupt], progress=False)
    assert f"step 1 is in {shared}/runs/interrupted/checkpoints" in str(raised.value)
    assert [type(error) for error in interrupt.errors] == [StoppedError]
    assert not (shared / "runs" / "interrupted" / "summary.json").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_callback_that_raises_ends_the_run_with_a_checkpoint(shared: Path) -> None:
    failing, other = At(1, lambda: [].pop()), At(0, lambda: None)
    with pytest.raises(ExtensionError, match=r"callback At\.step raised IndexError\('pop from empty list'\)") as raised:
        train(load(), name="failing", callbacks=[failing, other], progress=False)
    assert "step 1 is in" in str(raised.value)
    assert raised.value.__cause__ is not None
    assert isinstance(raised.value.__cause__.__cause__, IndexError)
    assert (shared / "runs" / "failing" / "checkpoints" / "latest").read_text() == "step-000001\n"
    assert [type(error) for error in other.errors] == [ExtensionError]


def test_criterion_that_raises_ends_the_run_with_a_checkpoint(shared: Path) -> None:
    def tired(group: Any) -> bool:
        if group.born == 2:
            raise SystemExit("enough")
        return True

    with pytest.raises(ExtensionError, match=r"algorithm\.criterion\.kind: 'tired' raised SystemExit\('enough'\)"):
        train(load(), name="tired", criterion=tired, progress=False)
    assert (shared / "runs" / "tired" / "checkpoints" / "latest").read_text() == "step-000001\n"


def test_other_address_than_that_of_the_running_ray_is_an_error(shared: Path) -> None:
    with pytest.raises(ResourceError, match=r"connected to the Ray at .* names '10\.0\.0\.9:6379'"):
        find_ray(RunSettings(ray_address="10.0.0.9:6379"))
    assert find_ray(RunSettings(ray_address="auto")) == ray.get_runtime_context().gcs_address


def test_run_folder_is_absolute_on_a_running_ray(notebook: Notebook, shared: Path) -> None:
    assert settings(notebook.summaries[0])["run"]["output_dir"] == str(shared / "runs")
