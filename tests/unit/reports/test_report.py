"""Reports of records made by hand: the page, its figures and its tables."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adagrpo_ray.errors import ConfigError, HistoryError
from adagrpo_ray.reports import drawing, examples, read, tables, write_report
from adagrpo_ray.reports.bars import by_interval, by_rung
from adagrpo_ray.reports.charts import charts
from adagrpo_ray.reports.reliability import reliability
from adagrpo_ray.reports.run_data import labelled
from adagrpo_ray.runs import GroupSample
from adagrpo_ray.runs.samples import TurnSample
from tests.support.histories import EPISODES, ON_BENCHMARKS, attempt, episode, evaluation, group, step
from tests.support.report_page import CHARTS, Page, check_pictures, heights, make, page_of, two_runs, words
from tests.support.scripts import script


@pytest.fixture
def usual(tmp_path: Path) -> Path:
    """A run of twelve steps."""
    steps = [step(n, resamples=(n, 1), rescued=(n // 2, 1)) for n in range(1, 13)]
    return make(tmp_path / "usual", steps, [evaluation(0, 0.25), evaluation(12, 0.75)], [group(1), group(2)])


class TestStates:
    @pytest.mark.parametrize("count", [1, 13])
    def test_summary_of_a_run_that_has_not_ended(self, tmp_path: Path, count: int) -> None:
        folder = make(tmp_path / "run", [step(n) for n in range(1, count + 1)], ended=False)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 14, "sec')
        numbers = words(read(str(folder))).numbers()
        assert numbers["state"] == "not finished"
        assert numbers["steps"] == f"{count} of 12"
        assert numbers["held-out accuracy after"] == "-"

    def test_single_evaluation_is_no_accuracy_after_training(self, tmp_path: Path) -> None:
        run = read(str(make(tmp_path / "run", [step(1)], [evaluation(0, 0.25)], ended=False)))
        numbers = words(run).numbers()
        assert (numbers["held-out accuracy before"], numbers["held-out accuracy after"]) == ("0.250", "-")

    def test_resumed_run_with_an_old_summary_has_not_ended(self, usual: Path) -> None:
        with (usual / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(step(13).to_dict()) + "\n")
        run = read(str(usual))
        assert not run.ended
        assert run.summary.steps == 13

    def test_run_without_configuration_is_shown(self, usual: Path) -> None:
        (usual / "config.yaml").unlink()
        assert words(read(str(usual))).numbers()["model"] == "-"

    def test_bars_by_rung_include_rungs_of_later_steps(self, tmp_path: Path) -> None:
        steps = [
            step(1, resamples=(), rescued=(), rewards_mean={}),
            step(2, resamples=(4, 2), rescued=(1, 1)),
        ]
        run = read(str(make(tmp_path / "run", steps)))
        chart = by_rung([run])
        assert chart is not None
        assert [heights(chart.figure, panel) for panel in range(3)] == [[4, 2], [1, 1], [0.25, 0.5]]


class TestFigures:
    def test_bars_are_means_and_sums_over_an_interval(self, usual: Path) -> None:
        chart = by_interval([read(str(usual))], 5)
        labels = [label.get_text() for label in chart.figure.axes[0].get_xticklabels()]
        assert labels == ["1\N{EN DASH}5", "6\N{EN DASH}10", "11\N{EN DASH}12"]
        means = [np.mean([step(n).reward for n in span]) for span in (range(1, 6), range(6, 11), (11, 12))]
        assert heights(chart.figure, 0) == pytest.approx(means)
        met, rest = np.array(heights(chart.figure, 1)).reshape(2, -1)
        assert (met + rest).tolist() == [15 + 5, 40 + 5, 23 + 2]
        assert met.tolist() == [6 + 5, 19 + 5, 11 + 2]

    def test_evaluations_are_placed_by_tokens(self, usual: Path) -> None:
        run = read(str(usual))
        chart = next(c for c in charts([run], 1) if c.name == "accuracy-by-tokens")
        first, held_out = chart.figure.axes[0].lines
        assert list(held_out.get_xdata()) == [0, 48_000]
        assert list(held_out.get_ydata()) == [0.25, 0.75]
        assert list(first.get_xdata()) == [4000 * n for n in range(1, 13)]
        assert list(first.get_ydata()) == [step(n).accuracy for n in range(1, 13)]
        assert [axes.get_title(loc="left") for axes in chart.figure.axes] == ["all prompts", "2 digits", "5 digits"]

    def test_benchmarks_have_a_panel_each_and_rows_in_the_summary(self, tmp_path: Path) -> None:
        steps = [step(number) for number in range(1, 5)]
        better = replace(ON_BENCHMARKS, step=4, accuracy=None, benchmark_accuracy={"gsm8k": 0.5, "aime24": 0.125})
        run = read(str(make(tmp_path / "run", steps, [ON_BENCHMARKS, better])))
        chart = next(c for c in charts([run], 1) if c.name == "benchmarks")
        assert [axes.get_title(loc="left") for axes in chart.figure.axes] == ["gsm8k", "aime24"]
        assert [list(axes.lines[0].get_ydata()) for axes in chart.figure.axes] == [[0.375, 0.5], [0.0, 0.125]]
        rows = dict(tables.summary([run]))
        assert (rows["gsm8k accuracy before"], rows["gsm8k accuracy after"]) == ("0.375", "0.500")
        assert (rows["held-out accuracy before"], rows["held-out accuracy after"]) == ("0.250", "-")

    def test_reliability_is_of_all_steps_in_ascending_order(self, tmp_path: Path) -> None:
        steps = [step(1), step(2, reliability={"0": (8, 0.5, 1)}), step(3, reliability={})]
        run = read(str(make(tmp_path / "run", steps)))
        chart = reliability([run])
        assert chart is not None
        (axes,) = chart.figure.axes
        _, line = axes.lines
        assert line.get_xydata().tolist() == [[1.0 / 20, 1 / 20], [6 / 8, 7 / 8]]
        assert [text.get_text() for text in axes.texts] == ["20", "8"]
        two = reliability([run, replace(run, label="other")])
        assert two is not None
        assert [len(axes.texts) for axes in two.figure.axes] == [0]

    def test_runs_without_expected_rates_have_no_reliability(self, tmp_path: Path) -> None:
        run = read(str(make(tmp_path / "run", [step(1, reliability={})])))
        assert reliability([run]) is None
        assert not {"reliability", "calibration"} & {chart.name for chart in charts([run], 1)}

    def test_running_totals_end_at_the_summary(self, usual: Path) -> None:
        run = read(str(usual))
        chart = next(c for c in charts([run], 1) if c.name == "tokens")
        ends = [list(line.get_ydata())[-1] for line in chart.figure.axes[0].lines]
        assert ends == [run.summary.generated_tokens, run.summary.extra_tokens, run.summary.trained_tokens]

    def test_thinned_curve_keeps_its_ends(self) -> None:
        _, (axes,) = drawing.panels(1)
        drawing.curve(axes, range(5000), range(5000), 0)
        (line,) = axes.lines
        assert len(line.get_xdata()) == 1000
        assert list(line.get_ydata())[:: len(line.get_ydata()) - 1] == [0.0, 4999.0]

    def test_smooth_averages_neighbouring_values(self) -> None:
        assert drawing.smooth(np.array([0.0, 3.0, 6.0, 0.0]), 3).tolist() == [1.5, 3.0, 3.0, 3.0]
        assert drawing.smooth(np.array([2.0]), 9).tolist() == [2.0]

    def test_svg_has_css_variables_instead_of_colours(self, usual: Path) -> None:
        inside = drawing.as_svg(by_interval([read(str(usual))], 2).figure, "a")
        assert "var(--series-0)" in inside
        assert set(re.findall(r"#[0-9a-f]{6}\b", inside)) == set()


class TestTexts:
    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("$a$", r"\$a\$"),
            ("\u96e3\n\x1b", r"\u96e3\n\x1b"),
            ("x" * 50, "x" * 22 + "\N{HORIZONTAL ELLIPSIS}" + "x" * 21),
        ],
    )
    def test_names_in_figures_are_escaped(self, name: str, shown: str) -> None:
        assert drawing.plain(name) == shown

    def test_secret_in_an_edited_configuration_is_withheld(self, tmp_path: Path) -> None:
        config = "run:\n  folder: s3://key:hidden@bucket/runs\ndata:\n  source: ['https://h/d?token=hidden']\n"
        folder = make(tmp_path / "run", [step(1)], config=config)
        text = words(read(str(folder))).text
        assert "hidden" not in text
        assert text.count("(withheld: it holds a secret)") == 3

    def test_example_group_has_the_reason_of_its_resample(self, usual: Path) -> None:
        text = words(read(str(usual))).text
        assert "No completion met the criterion any_correct: none of 2 is correct" in text
        assert "sampled again, with rung 0 (temperature 2, min_p 0.1)" in text
        assert "12+7=19 #1" in text
        assert "exact 1.000, length -" in text

    def test_episode_is_shown_turn_by_turn(self, tmp_path: Path) -> None:
        failed = TurnSample(9, 12, "end", "it is over", error="<b>no</b> answer")
        sample = group(1, episode(TurnSample(0, 4, "<i>call</i>", "the sum", reward=0.25, tool="add"), failed))
        page = words(read(str(make(tmp_path / "run", [step(1)], samples=[sample]))))
        (cell,) = (row[0] for row in page.rows if "turn 1" in row[0])
        assert "".join(cell.split()) == (
            "turn1,callsadd,reward0.25<i>call</i>observedthesumturn2enderror:<b>no</b>answerobserveditisover"
        )
        assert [attributes for tag, attributes in page.tags if tag == "div"].count({"class": "observed"}) == 2
        assert not {"b", "i"} & {tag for tag, _ in page.tags}

    def test_long_texts_lose_their_middle(self, tmp_path: Path) -> None:
        long = group(1, attempt([1.0], text="begin" + "x" * 50_000 + "end"))
        folder = make(tmp_path / "run", [step(1)], samples=[long])
        text = words(read(str(folder))).text
        assert "begin" in text
        assert "end #0" in text
        assert "characters ...]" in text
        assert text.count("x") < 3000


class TestExamples:
    def test_examples_of_each_kind_are_spread_over_the_run(self, tmp_path: Path) -> None:
        failed = [attempt([0.0], trained=False), attempt([0.0], 0, trained=False)]
        samples = [group(n, *kind) for n in range(1, 31) for kind in ([], failed, [attempt([1.0])])]
        chosen = read(str(make(tmp_path / "run", [step(1)], samples=samples))).examples
        assert [(g.step, len(g.attempts)) for g in chosen] == [(1, 2), (15, 2), (30, 2), (1, 2), (30, 2), (1, 1)]

    def test_large_file_is_read_at_some_places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(examples, "WHOLE_BYTES", 1000)
        monkeypatch.setattr(examples, "PLACES", 8)
        parsed = []
        real = GroupSample.from_dict

        def counted(values: dict[str, object]) -> GroupSample:
            parsed.append(values["step"])
            return real(values)

        monkeypatch.setattr(GroupSample, "from_dict", counted)
        folder = make(tmp_path / "run", [step(1)], samples=[group(n) for n in range(1, 201)])
        assert len(read(str(folder)).examples) == 3
        assert len(parsed) == 8
        assert max(parsed) > 150
        parsed.clear()
        monkeypatch.setattr(examples, "PLACES", 1000)
        assert len(read(str(folder)).examples) == 3
        assert parsed == list(range(1, 201)), "each group once, however long its line"

    def test_error_names_a_broken_samples_file(self, usual: Path) -> None:
        with (usual / "samples.jsonl").open("a") as file:
            file.write('{"step": 1}\n')
        with pytest.raises(HistoryError, match=r"samples\.jsonl cannot be read .* remove it"):
            read(str(usual))


def test_figures_of_episodes_are_only_in_reports_with_an_environment(tmp_path: Path) -> None:
    plain = read(str(make(tmp_path / "plain", [step(1)])))
    acting = read(str(make(tmp_path / "acting", [step(1, **EPISODES)])))
    assert not {"episodes", "tools"} & {chart.name for chart in charts([plain], 1)}
    assert [chart.name for chart in charts([plain, acting], 1)][-2:] == ["episodes", "tools"]


class TestSeveralRuns:
    def test_runs_share_figures(self, tmp_path: Path) -> None:
        runs = two_runs(tmp_path)
        for chart in charts(runs, 2):
            assert [t.get_text() for t in chart.figure.legends[0].get_texts()] == ["long", "short"], chart.name
        chart = by_interval(runs, 2)
        assert heights(chart.figure, 1) == [8, 8, 0, 0]
        assert heights(chart.figure, 0)[2:] == [0.5, 0.0], "the shorter run has no second interval"

    def test_runs_with_the_same_name_are_labelled_by_their_folders(self, tmp_path: Path) -> None:
        places = [str(make(tmp_path / parent / "run", [step(1)])) for parent in ("a", "b")]
        shown = words(*labelled([read(place) for place in places]))
        assert ["", *places] in shown.rows
        assert "All runs have the same settings" in shown.text

    def test_too_many_runs_are_refused(self, usual: Path) -> None:
        with pytest.raises(ConfigError, match="one figure cannot show 13 runs"):
            write_report([read(str(usual))] * 13, str(usual))

    def test_too_many_bars_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("adagrpo_ray.reports.write.MOST_BARS", 5)
        run = read(str(make(tmp_path / "run", [step(n) for n in range(1, 13)])))
        with pytest.raises(ConfigError, match=r"--interval=2 .* of 12 steps; give 3 or more"):
            write_report([run], str(tmp_path), 2)

    def test_differences_lists_settings_that_differ(self, tmp_path: Path) -> None:
        configs = ["run: {name: a}\nx: {y: [1, 2], z: 1}\n", "run: {name: b}\nx: {y: [1], z: 1, w: null}\n"]
        runs = [read(str(make(tmp_path / str(n), [step(1)], config=c))) for n, c in enumerate(configs)]
        assert tables.differences(runs) == [("x.y", "[1, 2]", "[1]"), ("x.w", "-", "null")]


@pytest.fixture
def memory() -> Iterator[str]:
    import fsspec

    yield "memory://bucket/runs"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.mark.usefixtures("one_figure")
def test_report_of_a_run_at_a_url_is_written_there(usual: Path, memory: str) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for path in usual.iterdir():
        if path.is_file():
            files.pipe_file(f"/bucket/runs/usual/{path.name}", path.read_bytes())
    run = read(f"{memory}/usual")
    assert (run.label, run.home, len(run.examples)) == ("usual", f"{memory}/usual", 2)
    assert write_report([run], run.home) == f"{memory}/usual/report.html"
    page = Page(files.cat_file("/bucket/runs/usual/report.html").decode())
    assert page.numbers()["steps"] == "12"
    with Image.open(io.BytesIO(files.cat_file("/bucket/runs/usual/plots/intervals.png"))) as picture:
        picture.load()
    with pytest.raises(HistoryError, match=re.escape(f"{memory}/none holds no metrics.jsonl")):
        read(f"{memory}/none")


@pytest.mark.usefixtures("one_figure")
class TestCommandLine:
    @pytest.fixture
    def report(self, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
        """Runs launch/report.py with these arguments: exit status, output, errors."""
        module = script("report")

        def run(*arguments: str | Path) -> tuple[int, str, str]:
            code = module.main([str(argument) for argument in arguments])
            captured = capsys.readouterr()
            return code, captured.out, captured.err

        return run

    def test_report_is_written_to_the_run_folder(
        self, usual: Path, report: Callable[..., tuple[int, str, str]]
    ) -> None:
        assert report(usual) == (0, f"report: {usual}/report.html\n", "")
        assert report(usual, "--interval", "5", "--out", usual / "new" / "place")[0] == 0
        assert "Bars are for 2 steps each" in page_of(usual / "report.html").text
        assert "Bars are for 5 steps each" in page_of(usual / "new" / "place" / "report.html").text
        check_pictures(usual / "new" / "place", CHARTS[:1])

    def test_report_of_several_runs_is_written_to_the_current_folder(
        self, usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., tuple[int, str, str]]
    ) -> None:
        other = make(tmp_path / "other", [step(1)])
        monkeypatch.chdir(tmp_path)
        assert report("usual", other) == (0, "report: report/report.html\n", "")
        check_pictures(tmp_path / "report", CHARTS[:1])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["missing"], "missing holds no metrics.jsonl; give the folder of a run, such as runs/NAME"),
            (["empty"], "empty has no finished step yet; try again after its first step"),
            (["usual", "--interval", "0"], "--interval=0 must be a number of steps, 1 or more"),
            (["usual", "--out", "file"], "cannot write file"),
            (["usual", "--out", "file/below"], "cannot write file/below"),
            (["s3://user:secret@bucket/run"], "RUN=s3://... holds a user, a password or a query"),
            (["nosuch://bucket/run"], "RUN='nosuch://bucket/run': Protocol not known: nosuch"),
            (["usual", "--out", "nosuch://bucket/run"], "--out='nosuch://bucket/run': Protocol not known: nosuch"),
        ],
    )
    def test_invalid_arguments_end_with_a_one_line_error(
        self,
        usual: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        report: Callable[..., tuple[int, str, str]],
        arguments: list[str],
        message: str,
    ) -> None:
        make(tmp_path / "empty", [], ended=False)
        (tmp_path / "file").touch()
        monkeypatch.chdir(tmp_path)
        code, out, err = report(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1
        assert "secret@" not in err
        assert not (usual / "report.html").exists()
