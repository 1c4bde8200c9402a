"""The page of runs in a browser, with invented runs and a running one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.runs import RunWriter
from adagrpo_ray.runs.summary import summarize
from tests.support.browser import needs_chromium, opened, served, until
from tests.support.held import Gate, started
from tests.support.histories import attempt, evaluation, group, step

pytestmark = needs_chromium

HOSTILE = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>${window.pwned=1}{{constructor}} $x^2$"
LONG = "A long thought about numbers. " * 1200
FAILED = attempt([0.0, 0.0], trained=False)


def make_run(root: Path, name: str, steps: int, rate: float, *, ended: bool = True) -> Path:
    """A run that records in each step a rescued group, a group with hostile texts, and one with a long completion."""
    config = (
        f"run: {{name: {name}, steps: {steps}}}\nlearner: {{learning_rate: {rate}}}\n"
        "algorithm: {name: adagrpo, criterion: {kind: any_correct}}\n"
    )
    records, folder = [step(number) for number in range(1, steps + 1)], root / name
    with RunWriter(folder, config) as run:
        run.evaluation("before", evaluation(0, 0.25))
        for record in records:
            run.step(record)
            number = record.step
            stuck = attempt([0.0, 0.0], 0, text=HOSTILE)
            run.samples(
                [
                    group(number, prompt=f"{number}+7= of {name}"),
                    group(number, FAILED, stuck, prompt=HOSTILE, prompt_id=f"h{number}", outcome="exhausted"),
                    group(number, attempt([1.0, 0.0], text=LONG), prompt_id=f"l{number}", difficulty="5 digits"),
                ]
            )
        if ended:
            run.evaluation("after", evaluation(steps, 0.5))
            held_out = evaluation(0, 0.25), evaluation(steps, 0.5)
            run.summary(summarize(records, *held_out, name=name, folder=folder, adapter=folder / "adapter"))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    make_run(root, "first", 30, 1e-4)
    make_run(root, "second", 40, 2e-4, ended=False)
    return root


@pytest.fixture(scope="module")
def url(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("state"), "--no-chat", "--runs", str(runs)) as address:
        yield address


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as one:
        one.wait_for_selector("#groups-list tr[data-at]")
        yield one
        assert one.evaluate("window.pwned") is None


def choose(page: Any, field: str, option: str) -> None:
    page.click(f"#{field} input")
    page.click(f"#{field} [role=option]:has-text('{option}')")
    page.keyboard.press("Escape")


def rows(page: Any) -> list[str]:
    """The listed groups."""
    return [str(row) for row in page.locator("#groups-list tbody tr").all_inner_texts()]


def ends(page: Any) -> list[int]:
    """The number of points of each curve of the reward: a mean and a std for each run."""
    lines = page.locator("#runs-curves figure").first.locator("polyline")
    return [len(line.get_attribute("points").split()) for line in lines.all()]


def test_newest_run_is_shown_first(page: Any) -> None:
    assert page.inner_text("#runs-curves .legend").strip() == "second"
    assert page.locator("#runs-curves figure").count() == 7
    assert ends(page) == [40, 40]
    assert "not ended" in page.inner_text("#runs-compared")
    assert "40+7= of second" in rows(page)[2]  # the first group of the last step; the newest is listed first


def test_two_runs_share_plots(page: Any) -> None:
    choose(page, "runs-chosen", "first")
    page.wait_for_selector("#runs-curves .legend >> text=first")
    assert sorted(ends(page)) == [30, 30, 40, 40]
    colors = {line.get_attribute("stroke") for line in page.locator("#runs-curves polyline").all()}
    assert len(colors) == 2
    compared = page.inner_text("#runs-compared")
    assert "Settings that differ" in compared
    assert "learner.learning_rate" in compared
    assert "algorithm.name" not in compared


def test_curves_over_generated_tokens(page: Any) -> None:
    assert "generated tokens" not in page.locator("#runs-curves figure").first.inner_html()
    page.click("#runs-axis label:has-text('generated tokens')")
    page.wait_for_selector("#runs-curves figure:first-of-type >> text=generated tokens")
    until(lambda: "100 k" in page.locator("#runs-curves figure").first.text_content())


def test_groups_are_filtered(page: Any) -> None:
    assert len(rows(page)) == 120
    choose(page, "groups-outcome", "exhausted")
    until(lambda: len(rows(page)) == 40)
    page.fill("#groups-first input", "11")
    page.fill("#groups-last input", "12")
    until(lambda: len(rows(page)) == 2)
    choose(page, "groups-outcome", "any")
    until(lambda: len(rows(page)) == 6)
    page.check("#groups-resampled input")
    until(lambda: len(rows(page)) == 4)
    page.uncheck("#groups-resampled input")
    choose(page, "groups-difficulty", "5 digits")
    until(lambda: len(rows(page)) == 2)
    page.fill("#groups-text textarea, #groups-text input", "nowhere")
    until(lambda: "No group of this run matches" in page.inner_text("#groups-list"))


def test_text_is_searched_in_problems_and_completions(page: Any) -> None:
    page.fill("#groups-text textarea, #groups-text input", "39+7= OF")
    until(lambda: len(rows(page)) == 1)
    assert "39+7= of" in rows(page)[0].lower()
    page.fill("#groups-text textarea, #groups-text input", "a long thought")
    until(lambda: len(rows(page)) == 40)


def test_open_group_shows_the_reason_of_its_resample(page: Any) -> None:
    page.click("#groups-list tr:has-text('40+7= of second')")
    page.wait_for_selector("#groups-open >> text=Attempt 2")
    text = page.inner_text("#groups-open")
    assert "No completion met the criterion any_correct: none of 2 is correct; best reward 0." in text
    assert "sampled again, with rung 0 (temperature 2, min_p 0.1)" in text
    assert "It met the criterion any_correct: 1 of 2 correct, best reward 1." in text
    assert "+0.500" in text
    until(lambda: page.locator("#groups-list tr[aria-current]").count() == 1)
    assert "40+7= of second" in page.inner_text("#groups-list tr[aria-current]")


def test_hostile_texts_are_shown_literally(page: Any) -> None:
    page.locator("#groups-list tr", has_text="onerror").first.click()
    page.wait_for_selector("#groups-open >> text=Attempt 2")
    assert page.inner_text("#groups-open").count(HOSTILE) == 2 + 1  # two completions and the problem
    assert page.locator("#groups-open img, #groups-open script, #groups-list img").count() == 0


def test_long_texts_are_folded_within_the_width_of_the_page(page: Any) -> None:
    page.locator("#groups-list tr", has_text="5 digits").first.click()
    page.wait_for_selector("#groups-open details")
    text = page.locator("#groups-open pre").first
    assert not text.is_visible()
    page.locator("#groups-open summary").first.click()
    assert text.is_visible()
    assert text.bounding_box()["height"] < 500
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_refresh_finds_new_runs_and_keeps_the_selection(page: Any, runs: Path) -> None:
    make_run(runs, "third", 2, 1e-4)
    page.click("#runs-refresh")
    choose(page, "runs-chosen", "third")
    page.wait_for_selector("#runs-curves .legend >> text=third")
    assert "second" in page.inner_text("#runs-curves .legend")


def test_broken_line_is_reported_on_the_page(browser: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", "broken", 2, 1e-4)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    with served(tmp_path, "--no-chat", "--runs", str(folder.parent)) as url, opened(browser, url) as page:
        page.wait_for_selector("#runs-notice >> text=metrics.jsonl, line 3")
        assert "Traceback" not in page.inner_text("body")


def test_running_run_is_followed(browser: Any, tmp_path: Path, tiny_model: Path, gate: Gate) -> None:
    """The run waits after some of its steps until the page has shown them."""
    waits = (3, 6, 9)
    gate.close(tmp_path / "runs" / "live" / "metrics.jsonl", *((steps, 0) for steps in waits))
    settings = [f"run.output_dir={tmp_path / 'runs'}", "run.name=live", "run.steps=12", "data.eval_prompts=4"]
    settings += ["evaluation.samples=1", "algorithm.prompts_per_step=4", *gate.settings]
    command = [sys.executable, "launch/train.py", *settings]
    with (
        served(tmp_path, "--no-chat", "--runs", str(tmp_path / "runs")) as url,
        opened(browser, url) as page,
        started(command, stdout=subprocess.DEVNULL) as training,
    ):
        page.wait_for_selector("#runs-notice >> text=There is no run")
        until((tmp_path / "runs" / "live" / "metrics.jsonl").exists, 240)
        page.click("#runs-refresh")
        page.wait_for_selector("#runs-curves .legend >> text=live")
        for point, steps in enumerate(waits):
            until(lambda steps=steps: ends(page) == [steps, steps], 240)
            gate.open(point)
        until(lambda: "12 of 12" in page.inner_text("#runs-compared"), 240)
        assert training.wait(timeout=240) == 0
        until(lambda: "ended" in page.inner_text("#runs-compared").replace("not ended", ""), 240)
        until(lambda: ends(page) == [12, 12], 240)
        until(lambda: "12" in rows(page)[0].split()[0])
        page.locator("#groups-list tr[data-at]").first.click()
        page.wait_for_selector("#groups-open >> text=Attempt 1")
