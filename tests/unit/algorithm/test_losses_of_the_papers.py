"""Losses and gradients of random batches against the papers' formulas, written out in plain Python."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from adagrpo_ray.algorithm.loss import Tokens, policy_loss, token_weights
from adagrpo_ray.config.algorithm import LossSettings

BATCHES = 200
LOW, HIGH, BETA, CAP, LIMIT = 0.2, 0.28, 0.04, 2.0, 12
KINDS = ["grpo", "gspo", "bnpo", "dapo", "cispo", "dr_grpo"]


@dataclass(frozen=True)
class Sequence:
    """One completion: log-probabilities by policy, advantage, and whether the loss leaves it out."""

    policy: list[float]
    old: list[float]
    behaviour: list[float]
    reference: list[float]
    advantage: float
    masked: bool


def random_batch(rng: random.Random) -> list[Sequence]:
    def sequence() -> Sequence:
        policy = [-rng.expovariate(1.0) for _ in range(rng.randint(1, LIMIT))]
        old = [p + rng.gauss(0, 0.25) for p in policy]
        behaviour = [o + rng.gauss(0, 0.6) for o in old]
        reference = [p + rng.gauss(0, 0.4) for p in policy]
        return Sequence(policy, old, behaviour, reference, rng.choice([0.0, rng.gauss(0, 2)]), rng.random() < 0.15)

    return [sequence() for _ in range(rng.randint(1, 6))]


def by_formula(kind: str, batch: list[Sequence]) -> tuple[float, list[list[float]]]:
    """Loss, and its derivative by each log-probability of the policy."""
    tokens = sum(len(s.policy) for s in batch if not s.masked)
    loss, gradients = 0.0, []
    for s in batch:
        length, a = len(s.policy), s.advantage
        match kind:
            case "grpo" | "gspo":  # 1/N sum over completions of 1/T sum over tokens
                share = 1 / (len(batch) * length)
            case "bnpo" | "dapo" | "cispo":  # 1 / all tokens
                share = 1 / tokens if tokens else 0.0
            case _:  # dr_grpo: 1 / (N x most tokens)
                share = 1 / (len(batch) * LIMIT)
        gradient = [0.0] * length
        whole = math.exp(sum(p - o for p, o in zip(s.policy, s.old, strict=True)) / length)
        for t in range(0 if not s.masked else length, length):
            weight = min(math.exp(s.old[t] - s.behaviour[t]), CAP)
            ratio = whole if kind == "gspo" else math.exp(s.policy[t] - s.old[t])
            if kind == "cispo":
                surrogate = min(ratio, 1 + HIGH) * a * s.policy[t]
                slope = min(ratio, 1 + HIGH) * a
            else:
                bounded = min(max(ratio, 1 - LOW), 1 + HIGH)
                surrogate = min(ratio * a, bounded * a)
                slope = 0.0 if bounded * a < ratio * a else ratio * a
            apart = s.reference[t] - s.policy[t]
            kl, kl_slope = math.exp(apart) - apart - 1, 1 - math.exp(apart)
            loss += share * (-weight * surrogate + BETA * kl)
            gradient[t] = share * (-weight * slope + BETA * kl_slope)
        gradients.append(gradient)
    return loss, gradients


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_equal_the_formulas_of_the_papers(kind: str) -> None:
    rng = random.Random(f"papers {kind}")
    settings = LossSettings.model_validate(
        {"kind": kind, "epsilon": LOW, "epsilon_high": HIGH, "beta": BETA, "correction_cap": CAP}
    )
    for _ in range(BATCHES):
        batch = random_batch(rng)
        weights = token_weights([len(s.policy) for s in batch], kind, LIMIT, [s.masked for s in batch])

        def flat(field: str, batch: list[Sequence] = batch) -> torch.Tensor:
            return torch.tensor([v for s in batch for v in getattr(s, field)], dtype=torch.float64)

        policy = flat("policy").requires_grad_()
        tokens = Tokens(
            policy=policy,
            old=flat("old"),
            behaviour=flat("behaviour"),
            reference=flat("reference"),
            advantages=torch.tensor([s.advantage for s in batch for _ in s.policy], dtype=torch.float64),
            weights=torch.from_numpy(np.concatenate(weights)).double(),
            sequence=torch.tensor([i for i, s in enumerate(batch) for _ in s.policy]),
        )
        loss, statistics = policy_loss(tokens, settings)
        (gradient,) = torch.autograd.grad(loss, policy)
        expected, slopes = by_formula(kind, batch)
        assert loss.item() == statistics.loss == pytest.approx(expected, abs=1e-6)
        assert gradient.tolist() == pytest.approx([g for row in slopes for g in row], abs=1e-6)
        assert statistics.tokens == sum(len(s.policy) for s in batch if not s.masked)
