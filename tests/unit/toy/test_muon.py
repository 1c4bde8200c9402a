"""Muon in float32 agrees with that of torch in bfloat16."""

from __future__ import annotations

import pytest
import torch

from adagrpo_ray.toy.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16)])
def test_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7.0
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3  # the coefficients leave them between 0.7 and 1.2
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    near = (u.T @ orthogonal(matrix) @ vh.T).diagonal()
    torch.testing.assert_close(near.sort().values, values.sort().values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16)])
def test_steps_equal_those_of_torch(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    mine, torchs = Muon([ours], **settings), torch.optim.Muon([theirs], momentum=0.95, **settings)
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient, gradient.clone()
        mine.step()
        torchs.step()
    moved = (theirs - start).abs().max()
    assert (ours - theirs).abs().max() < 0.03 * moved  # bfloat16 has 8 bits, over five iterations
    assert moved > 0.05
