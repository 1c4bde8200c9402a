"""The DeepSpeed engine around the policy: optimizer steps on a batch, and the adapter that they train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adagrpo_ray.algorithm.loss import policy_loss
from adagrpo_ray.algorithm.update_statistics import UpdateStatistics
from adagrpo_ray.config.tree import Config
from adagrpo_ray.learner.deepspeed_setup import free, prepare
from adagrpo_ray.learner.dropout import UpdateMode, without_dropout
from adagrpo_ray.learner.engine_state import EngineState, read_generators, write_generators
from adagrpo_ray.learner.gradients import GradientSum, hand_over
from adagrpo_ray.learner.layout import LAYOUTS, Rows
from adagrpo_ray.learner.loss_tokens import loss_tokens
from adagrpo_ray.learner.masters import Masters
from adagrpo_ray.learner.schedule import learning_rate
from adagrpo_ray.learner.updates import TrainReport, UpdateReport, of_pass
from adagrpo_ray.types import TrainBatch, TrainSample


class LearnerEngine:
    """The policy of one rank. With several ranks, every method must be called on all of them."""

    def __init__(self, model_path: str, config: Config, rank: int, world_size: int, master: tuple[str, int]) -> None:
        """Join the process group at `master` (address, port), load the model, and wrap it in DeepSpeed's engine."""
        self._config, self._rank, self._world_size = config, rank, world_size
        prepared = prepare(model_path, config, rank, world_size, master)
        self._policy, self._engine, self._device = prepared.policy, prepared.engine, prepared.device
        self._trainable = prepared.trainable
        self._shapes = [getattr(p, "ds_shape", p.shape) for p in self._trainable]  # stage 3 has only a part here
        self._mode = UpdateMode(self._policy)
        self._skipped_in_a_row = 0
        self.packing = prepared.packing  # for `pack_batches`
        self.notices = prepared.notices
        self._lay_out = LAYOUTS[self.packing]

    def train(self, batch: TrainBatch) -> TrainReport:
        """Make the updates on a batch, whose token weights contain the normalisation of the loss.

        Each pass over the batch has one update for each mini-batch. The old policy of a mini-batch is the policy before
        the first update on it, so that the clip range bounds all updates on it together; the rollout correction weighs
        the changes by mini-batches before it. Its log-probabilities are those of that update's forward pass. If
        that pass has dropout (`model.lora.dropout`), they are from an additional pass without dropout, since the
        rollout engines have none. The policy's own log-probabilities keep LoRA's dropout, which regularises the
        adapter.

        An update in which a number is not finite is skipped on all ranks: weights and moments stay as they are. It ends
        the batch, since the next update would start from the same weights.
        """
        self._mode.begin()
        made: list[UpdateReport] = []
        cause: str | None = None
        rate = learning_rate(self._config, batch.step)
        one_pass = [(micro_batches, list[torch.Tensor]()) for micro_batches in batch.mini_batches]
        for number, (micro_batches, old) in enumerate(one_pass * batch.passes):
            rate = learning_rate(self._config, batch.step, number)
            result = self._update(micro_batches, old, rate)
            if not isinstance(result, UpdateReport):
                cause = result
                break
            made.append(result)
        if one_pass:
            self._skipped_in_a_row = 0 if cause is None else self._skipped_in_a_row + 1
        return TrainReport(
            first=of_pass(made[: len(one_pass)]),
            last=of_pass(made[-len(one_pass) :]),
            learning_rate=rate,
            skipped=int(cause is not None),
            cause=cause,
            skipped_in_a_row=self._skipped_in_a_row,
        )

    def _update(
        self, micro_batches: Sequence[tuple[TrainSample, ...]], old: list[torch.Tensor], rate: float
    ) -> UpdateReport | str:
        """Make one update; returns its report, or the cause if it was skipped.

        The first update on a mini-batch fills `old` with one tensor for each micro-batch.
        """
        statistics = UpdateStatistics()
        gradient = GradientSum(self._shapes, self._device)
        for number, samples in enumerate(micro_batches):
            rows = self._lay_out(samples, self._device)
            if len(old) == number and self._mode.drops:
                with torch.no_grad(), without_dropout(self._policy):
                    old.append(self._policy(rows)[0])
            logprobs, entropy = self._policy(rows)
            if len(old) == number:
                old.append(logprobs.detach())
            reference = self._reference(rows) if self._config.algorithm.loss.beta > 0 else None
            tokens = loss_tokens(samples, logprobs, old[number], reference, entropy)
            loss, update = policy_loss(tokens, self._config.algorithm.loss)
            gradient.note(
                (logprobs, tokens.old, tokens.behaviour, tokens.reference, tokens.advantages * tokens.weights, loss)
            )
            gradient.add(torch.autograd.grad(loss, self._trainable, allow_unused=True))
            if self._config.learner.zero_stage == 3:
                self._engine.optimizer.backward_epilogue()  # releases weights that no hook of this pass released
            statistics = statistics.merged(update)
        whole = gradient.reduce(self._world_size, self._config.learner.max_grad_norm)
        if whole.cause is not None:
            return whole.cause
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = rate
        hand_over(self._engine, self._trainable, whole.gradients)
        return UpdateReport(statistics, whole.norm)

    def logprobs(self, samples: tuple[TrainSample, ...]) -> list[Any]:
        """Log-probabilities [P] of the tokens that the policy wrote in each sample, under the current policy."""
        with torch.no_grad(), without_dropout(self._policy):
            flat = self._policy(self._lay_out(samples, self._device))[0].cpu()
        return [part.numpy() for part in flat.split([s.policy_tokens for s in samples])]

    def close(self) -> None:
        """Free the memory of the weights; nothing of the engine may be used afterwards."""
        free(self._engine, self._policy)

    def adapter(self) -> dict[str, torch.Tensor]:
        """The whole tensors of the adapter on the host, in float32, keyed as in PEFT's files."""
        import deepspeed

        named = self._policy.adapter_parameters()
        with deepspeed.zero.GatheredParameters(list(named.values()), enabled=self._config.learner.zero_stage == 3):
            return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in named.items()}

    def snapshot(self) -> EngineState | None:
        """The engine's state between two steps, on rank 0; None on the others."""
        weights, moments, steps = self._masters().read()
        random = read_generators(self._rank, self._world_size, self._device)
        return EngineState(weights, moments, random, steps, self._skipped_in_a_row) if self._rank == 0 else None

    def restore(self, state: EngineState) -> None:
        """Restore `state`, on any number of ranks. Raises CheckpointError if a number in it is not finite."""
        state.check_finite()
        self._masters().write(state.weights, state.moments, state.optimizer_steps)
        self._skipped_in_a_row = state.skipped_in_a_row
        write_generators(state.random, self._rank, self._device)

    @property
    def peft_config(self) -> Any:
        """PEFT's own settings of the adapter."""
        return self._policy.peft_model.peft_config["default"]

    def _masters(self) -> Masters:
        return Masters(self._engine, self._policy.adapter_parameters(), self._rank, self._world_size)

    def _reference(self, rows: Rows) -> torch.Tensor:
        with self._policy.reference():
            return self._policy.forward(rows)[0]
