"""Gradients are summed in float32 for any type of the parameters, and numbers that are not finite are found."""

from __future__ import annotations

import math

import pytest
import torch

from adagrpo_ray.learner.gradients import CAUSES, GradientSum


def make_sum(*shapes: tuple[int, ...]) -> GradientSum:
    return GradientSum([torch.Size(shape) for shape in shapes], torch.device("cpu"))


def test_small_gradients_are_summed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(7, 3, generator=generator).mul(1e-3).bfloat16() for _ in range(2000)]
    gradient = make_sum((7, 3))
    for part in parts:
        gradient.add([part])
    exact = torch.stack(parts).double().sum(0)
    (total,) = gradient.reduce(1).gradients
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=0)
    low = torch.zeros(7, 3, dtype=torch.bfloat16)
    for part in parts:
        low += part
    assert ((low.double() - exact).abs() / exact).min() > 0.1  # the error of a sum in bfloat16


@pytest.mark.parametrize("parts", [64, 128, 256])
def test_gradients_of_micro_batches_are_summed_in_float32(parts: int) -> None:
    """The sum is as exact as float32 allows; a sum in bfloat16 would be far outside of that."""
    generator = torch.Generator().manual_seed(parts)
    mean = torch.randn(64, 16, generator=generator)
    gradients = [(mean + torch.randn(64, 16, generator=generator)).mul(1e-3).bfloat16() for _ in range(parts)]
    exact = torch.stack(gradients).double().sum(0)

    def error(total: torch.Tensor) -> float:
        return float((total.double() - exact).norm() / exact.norm())

    whole, low = make_sum((64, 16)), torch.zeros(64, 16, dtype=torch.bfloat16)
    for gradient in gradients:
        whole.add([gradient])
        low += gradient
    (total,) = whole.reduce(1).gradients
    assert total.dtype == torch.float32
    assert error(total) < 1e-6
    assert error(total.bfloat16()) < 2**-9  # error of the one rounding when DeepSpeed gets it
    assert error(low) > 2**-8


def test_a_parameter_that_was_not_used_adds_nothing() -> None:
    gradient = make_sum((2,), (3,))
    gradient.add([None, torch.ones(3)])
    assert [g.tolist() for g in gradient.reduce(1).gradients] == [[0.0, 0.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("number", range(len(CAUSES)))
def test_the_cause_of_a_skipped_update_is_named(number: int, bad: float) -> None:
    gradient = make_sum((2,))
    values: list[torch.Tensor | None] = [torch.zeros(4) for _ in CAUSES]
    gradient.note(values)
    values[number] = torch.tensor([0.0, bad])
    gradient.note(values)
    assert gradient.reduce(1).cause == CAUSES[number]


def test_the_first_cause_is_named() -> None:
    gradient = make_sum((2,))
    gradient.note([None, torch.tensor(math.nan), None, None, None, torch.tensor(math.nan)])
    gradient.add([torch.tensor([math.nan, 0.0])])
    assert gradient.reduce(1).cause == "old log-probabilities"


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_norm_that_is_not_finite_names_the_gradient_as_the_cause(bad: float) -> None:
    """The square of 1e30 is too large for float32, also in Adam's second moment."""
    gradient = make_sum((2,))
    gradient.note([torch.zeros(3) for _ in CAUSES])
    gradient.add([torch.tensor([bad, 0.0])])
    assert gradient.reduce(1).cause == "gradient"


def test_the_norm_is_that_of_all_parameters() -> None:
    gradient = make_sum((1,), (2,))
    gradient.add([torch.tensor([2.0]), torch.tensor([3.0, 6.0])])
    assert (gradient.reduce(1).norm, gradient.reduce(1).cause) == (pytest.approx(7.0), None)


@pytest.mark.parametrize(
    ("most", "clipped"), [(2.5, [[1.5], [2.0]]), (10.0, [[3.0], [4.0]]), (math.inf, [[3.0], [4.0]])]
)
def test_gradients_are_clipped_by_their_norm_together(most: float, clipped: list[list[float]]) -> None:
    gradient = make_sum((1,), (1,))
    gradient.add([torch.tensor([3.0]), torch.tensor([4.0])])
    reduced = gradient.reduce(1, most)
    assert [part.tolist() for part in reduced.gradients] == [pytest.approx(part) for part in clipped]
    assert reduced.norm == pytest.approx(5.0)  # before
