"""DeepSpeed around the policy: one optimizer step on a batch, and the adapter taken out of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo_ray.algorithm.loss import Tokens, policy_loss
from adagrpo_ray.algorithm.update_statistics import UpdateStatistics
from adagrpo_ray.config.tree import Config, Packing
from adagrpo_ray.errors import CheckpointError, ModelError
from adagrpo_ray.learner.agreement import check_agreement
from adagrpo_ray.learner.buffers import REDUCE_BUCKET
from adagrpo_ray.learner.dropout import UpdateMode, without_dropout
from adagrpo_ray.learner.gather import init_method
from adagrpo_ray.learner.gradients import GradientSum, hand_over
from adagrpo_ray.learner.layout import LAYOUTS, Rows
from adagrpo_ray.learner.masters import Masters
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.learner.schedule import learning_rate
from adagrpo_ray.learner.updates import TrainReport, UpdateReport
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.pretrained import flash_attention
from adagrpo_ray.model.shared_attention import shares_prompts
from adagrpo_ray.types import TrainBatch, TrainSample


@dataclass(frozen=True, eq=False)
class EngineState:
    """All that the next optimizer step depends on beside the batch; see `Masters.read` for weights and moments.

    `random` holds the states of torch's generators, as "cpu.RANK" and "cuda.RANK".
    """

    weights: dict[str, NDArray[Any]]
    moments: dict[str, NDArray[Any]]
    random: dict[str, NDArray[Any]]
    optimizer_steps: int
    skipped_in_a_row: int


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's own configuration for these settings."""
    s = config.learner
    optimizer = {"lr": s.learning_rate, "betas": list(s.betas), "weight_decay": s.weight_decay, "torch_adam": True}
    zero: dict[str, Any] = {"stage": s.zero_stage, "reduce_bucket_size": REDUCE_BUCKET}
    if s.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the engine is told where a batch ends, since batches differ in size
        "optimizer": {"type": "AdamW", "params": optimizer},
        "gradient_clipping": s.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }


class LearnerEngine:
    """The policy of one rank. With several ranks, every method is called on all of them together."""

    def __init__(self, model_path: str, config: Config, rank: int, world_size: int, master: tuple[str, int]) -> None:
        """Join the process group at `master` (address, port), load the model, and hand it to DeepSpeed."""
        cuda = torch.cuda.is_available()
        if not cuda:
            os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.update(
            MASTER_ADDR=master[0],
            MASTER_PORT=str(master[1]),
            RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_RANK="0",  # Ray shows each actor its own device only
        )
        import deepspeed

        # An extra for several CPU ranks on one machine, compiled at first use; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.manual_seed(config.run.seed)
        deepspeed.init_distributed(
            dist_backend="nccl" if cuda else "gloo",
            verbose=False,
            init_method=init_method(*master),
            rank=rank,
            world_size=world_size,
        )
        peft_model = load_policy(model_path, config)
        if config.learner.gradient_checkpointing:
            peft_model.enable_input_require_grads()
            peft_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._config, self._rank, self._world_size = config, rank, world_size
        self._device = torch.device("cuda" if cuda else "cpu")
        # Under stage 3 each use of a layer gathers its weights from all ranks: they must use the head equally often.
        together = config.learner.zero_stage == 3 and world_size > 1
        self._policy = Policy(
            peft_model,
            self._max_over_ranks if together else None,
            entropy_gradient=config.algorithm.loss.entropy_coef > 0.0,
        )
        trainable = [p for p in self._policy.parameters() if p.requires_grad]
        weights = {name: p.detach().to("cpu", torch.float32, copy=True).numpy() for name, p in self._named().items()}
        self._engine, *_ = deepspeed.initialize(
            model=self._policy,
            model_parameters=trainable,
            config=deepspeed_config(config),
        )
        self._masters().begin(weights)
        self._trainable = tuple(trainable)
        self._shapes = [getattr(p, "ds_shape", p.shape) for p in trainable]  # under stage 3 a part of it is here
        self._mode = UpdateMode(self._policy)
        self._skipped_in_a_row = 0
        self._policy.eval()
        self.packing = self._choose_packing(peft_model.get_base_model())  # which `pack_batches` must know
        self._lay_out = LAYOUTS[self.packing]

    def _choose_packing(self, base: Any) -> Packing:
        """The packing with which log-probabilities are those of the model itself; ModelError if there is none."""
        packing = self._config.learner.packing_with(flash_attention(self._config))
        if packing == "shared" and not shares_prompts(base):  # which null allows
            packing = "padded"

        def check(packing: Packing) -> None:
            check_agreement(base, lambda rows: self._policy(rows)[0], packing, self._config)

        try:
            check(packing)
        except ModelError:
            if packing != "shared" or self._config.learner.packing is not None:
                raise
            base.set_attn_implementation("sdpa")
            packing = "padded"
            check(packing)
        return packing

    def train(self, batch: TrainBatch) -> TrainReport:
        """The updates on a batch, whose token weights hold the loss's normalisation.

        The old policy is the one before the first update, so that the clip range bounds how far all of them together
        may go. Its log-probabilities are those of the first update's forward pass or, if that one drops activations
        (`model.lora.dropout`), of a pass before it without dropout: they are compared with the engines', which have
        none. The policy's own keep LoRA's dropout, which regularises the adapter.

        An update in which anything is not finite is skipped on all ranks: weights and moments stay as they are. It
        ends the batch, since its next update would start from the same weights.
        """
        self._mode.begin()
        old: list[torch.Tensor] = []
        made: list[UpdateReport] = []
        cause: str | None = None
        rate = learning_rate(self._config, batch.step)
        for number in range(self._config.algorithm.updates_per_batch if batch.micro_batches else 0):
            rate = learning_rate(self._config, batch.step, number)
            result = self._update(batch, old, rate)
            if not isinstance(result, UpdateReport):
                cause = result
                self._skipped_in_a_row += 1
                break
            made.append(result)
            self._skipped_in_a_row = 0
        return TrainReport(
            first=made[0] if made else None,
            last=made[-1] if made else None,
            learning_rate=rate,
            skipped=int(cause is not None),
            cause=cause,
            skipped_in_a_row=self._skipped_in_a_row,
        )

    def _update(self, batch: TrainBatch, old: list[torch.Tensor], rate: float) -> UpdateReport | str:
        """One update, or the cause for which it was skipped.

        Fills `old`, one tensor a micro-batch, in the first update on this batch.
        """
        statistics = UpdateStatistics()
        gradient = GradientSum(self._shapes, self._device)
        for number, samples in enumerate(batch.micro_batches):
            rows = self._lay_out(samples, self._device)
            if len(old) == number and self._mode.drops:
                with torch.no_grad(), without_dropout(self._policy):
                    old.append(self._policy(rows)[0])
            logprobs, entropy = self._policy(rows)
            if len(old) == number:
                old.append(logprobs.detach())
            tokens = self._tokens(samples, rows, logprobs, old[number], entropy)
            loss, update = policy_loss(tokens, self._config.algorithm.loss)
            gradient.note(
                (logprobs, tokens.old, tokens.behaviour, tokens.reference, tokens.advantages * tokens.weights, loss)
            )
            gradient.add(torch.autograd.grad(loss, self._trainable, allow_unused=True))
            if self._config.learner.zero_stage == 3:
                self._engine.optimizer.backward_epilogue()  # gives back weights that no hook of this pass did
            statistics = statistics.merged(update)
        whole = gradient.reduce(self._world_size)
        if whole.cause is not None:
            return whole.cause
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = rate
        hand_over(self._engine, self._trainable, whole.gradients)
        return UpdateReport(statistics, whole.norm)

    def _tokens(
        self,
        samples: tuple[TrainSample, ...],
        rows: Rows,
        policy: torch.Tensor,
        old: torch.Tensor,
        entropy: torch.Tensor,
    ) -> Tokens:
        """The tokens of a micro-batch, with all that the loss needs."""
        return Tokens(
            policy=policy,
            old=old,
            behaviour=self._flat([s.behaviour_logprobs for s in samples]),
            reference=self._reference(rows) if self._config.algorithm.loss.beta > 0 else None,
            advantages=self._flat([np.full(len(s.token_ids), s.advantage, np.float32) for s in samples]),
            weights=self._flat([s.token_weights for s in samples]),
            sequence=self._flat([np.full(len(s.token_ids), i) for i, s in enumerate(samples)]),
            entropy=entropy,
            difficulties=[s.difficulty for s in samples],
        )

    def logprobs(self, samples: tuple[TrainSample, ...]) -> list[Any]:
        """Log-probabilities [T] of each sample's completion under the policy as it is now."""
        with torch.no_grad(), without_dropout(self._policy):
            flat = self._policy(self._lay_out(samples, self._device))[0].cpu()
        return [part.numpy() for part in flat.split([len(s.token_ids) for s in samples])]

    def release(self) -> None:
        """Give the memory back that torch keeps for the next step, for another process on the same GPU."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors on the host, float32, keyed as in PEFT's files; whole under ZeRO-3 too."""
        import deepspeed

        named = self._named()
        with deepspeed.zero.GatheredParameters(list(named.values()), enabled=self._config.learner.zero_stage == 3):
            return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in named.items()}

    def snapshot(self) -> EngineState | None:
        """The engine's state between two steps, on rank 0; None on the others."""
        weights, moments, steps = self._masters().read()
        own = {f"cpu.{self._rank}": torch.get_rng_state().numpy()}
        if self._device.type == "cuda":
            own[f"cuda.{self._rank}"] = torch.cuda.get_rng_state().numpy()
        every: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(every, own)
        if self._rank != 0:
            return None
        random = {k: v for one in every for k, v in one.items()}
        return EngineState(weights, moments, random, steps, self._skipped_in_a_row)

    def restore(self, state: EngineState) -> None:
        """Go on where `state` was taken, on any number of ranks; a rank that was not there keeps its generators.

        CheckpointError if it holds a number that is not finite.
        """
        for name, values in (*state.weights.items(), *state.moments.items()):
            if not np.isfinite(values).all():
                raise CheckpointError(
                    f"{name} of the checkpoint holds numbers that are not finite; take an earlier checkpoint"
                )
        self._masters().write(state.weights, state.moments, state.optimizer_steps)
        self._skipped_in_a_row = state.skipped_in_a_row
        cpu, cuda = (state.random.get(f"{kind}.{self._rank}") for kind in ("cpu", "cuda"))
        if cpu is not None:
            torch.set_rng_state(torch.tensor(cpu))
        if cuda is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(torch.tensor(cuda))

    def save_adapter(self, folder: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write `tensors` of `adapter` in PEFT's layout: adapter_config.json and adapter_model.safetensors."""
        from safetensors.torch import save

        os.makedirs(folder, exist_ok=True)
        # Not `save_file`, whose files nobody else may read.
        Path(folder, "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        peft_config = self._policy.peft_model.peft_config["default"]
        peft_config.inference_mode = True
        peft_config.save_pretrained(folder)
        peft_config.inference_mode = False

    def _named(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters, by their names in PEFT's files."""
        named = self._policy.peft_model.named_parameters()
        return {name.replace(".default.", "."): p for name, p in named if p.requires_grad}

    def _masters(self) -> Masters:
        return Masters(self._engine, self._named(), self._rank, self._world_size)

    def _reference(self, rows: Rows) -> torch.Tensor:
        with self._policy.reference():
            return self._policy.forward(rows)[0]

    def _max_over_ranks(self, number: int) -> int:
        """The largest of the ranks' numbers, which all of them call this for."""
        numbers = torch.tensor(number, device=self._device)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return int(numbers)

    def _flat(self, arrays: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(self._device)
