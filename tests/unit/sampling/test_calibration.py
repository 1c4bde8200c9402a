"""Brier scores and the sums of a reliability plot, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adagrpo_ray.sampling.calibration import Forecast, calibration

SURE, EVEN = Forecast(1.0, 0.75, correct=4, completions=4), Forecast(0.5, 0.25, correct=1, completions=2)


def test_brier_scores_are_means_over_prompts() -> None:
    found = calibration([SURE, EVEN])
    assert found["brier_posterior"] == (0.0 + 0.25) / 2
    assert found["brier_prior"] == (0.25**2 + (0.75**2 + 0.25**2) / 2) / 2


def test_tenths_have_sums_of_completions() -> None:
    found = calibration([SURE, EVEN, replace(EVEN, expected=0.59), replace(EVEN, expected=0.0, correct=0)])
    assert found["reliability"] == {"0": (2, 0.0, 0), "0.5": (4, pytest.approx(1.0 + 1.18), 2), "0.9": (4, 4.0, 4)}


def test_nothing_is_measured_without_forecasts() -> None:
    found = calibration([])
    assert [found["brier_posterior"], found["brier_prior"]] == [None, None]
    assert found["reliability"] == {}
