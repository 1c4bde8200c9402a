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
from adagrpo_ray.config.tree import Config
from adagrpo_ray.learner.buffers import REDUCE_BUCKET
from adagrpo_ray.learner.gather import init_method
from adagrpo_ray.learner.layout import Rows, join, pad
from adagrpo_ray.learner.masters import Masters
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.model.load import flash_attention, load_policy
from adagrpo_ray.types import TrainBatch, TrainSample


@dataclass(frozen=True)
class TrainReport:
    """What one rank says of one optimizer step; the ranks' `statistics` merge to those of the batch."""

    statistics: UpdateStatistics
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True, eq=False)
class EngineState:
    """All that the next optimizer step depends on beside the batch; see `Masters.read` for weights and moments.

    `random` holds the states of torch's generators, as "cpu.RANK" and "cuda.RANK".
    """

    weights: dict[str, NDArray[Any]]
    moments: dict[str, NDArray[Any]]
    random: dict[str, NDArray[Any]]
    optimizer_steps: int
    schedule: dict[str, Any]


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
        "gradient_clipping": s.gradient_clip,
        "zero_optimization": zero,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }


def _scheduler(config: Config) -> Any:
    """A function from the optimizer to its learning-rate schedule over the run's updates."""
    from transformers import get_scheduler

    s, steps = config.learner, config.run.steps * config.algorithm.updates_per_batch
    name = {"constant": "constant_with_warmup"}.get(s.schedule, s.schedule)
    return lambda optimizer: get_scheduler(name, optimizer, round(s.warmup * steps), steps)


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
        self.padded = not config.learner.packed(flash_attention(config))  # which `pack_batches` must know
        self._lay_out = pad if self.padded else join
        # Under stage 3 each use of a layer gathers its weights from all ranks: they must use the head equally often.
        together = config.learner.zero_stage == 3 and world_size > 1
        self._policy = Policy(
            peft_model,
            *([self._max_over_ranks] if together else []),
            entropy_gradient=config.algorithm.loss.entropy_coef > 0.0,
        )
        trainable = [p for p in self._policy.parameters() if p.requires_grad]
        self._engine, *_ = deepspeed.initialize(
            model=self._policy,
            model_parameters=trainable,
            lr_scheduler=_scheduler(config),
            config=deepspeed_config(config),
        )

    def train(self, batch: TrainBatch) -> TrainReport:
        """The optimizer steps on a batch, whose token weights hold the loss's normalisation.

        The report is of the last one. The old policy is the one before the first, so that the clip range
        bounds how far all of them together may go.
        """
        self._engine.train()
        old: list[torch.Tensor] = []
        report = TrainReport(UpdateStatistics(), 0.0, self._learning_rate)
        for _ in range(self._config.algorithm.updates_per_batch if batch.micro_batches else 0):
            report = self._update(batch, old)
        return report

    def _update(self, batch: TrainBatch, old: list[torch.Tensor]) -> TrainReport:
        """One optimizer step; fills `old`, one tensor a micro-batch, where it is the first on this batch."""
        loss = self._config.algorithm.loss
        statistics, norm = UpdateStatistics(), 0.0
        learning_rate = self._learning_rate
        for number, samples in enumerate(batch.micro_batches, start=1):
            rows = self._lay_out(samples, self._device)
            logprobs, entropy = self._engine(rows)
            if len(old) < number:
                old.append(logprobs.detach())
            tokens = Tokens(
                policy=logprobs,
                old=old[number - 1],
                behaviour=self._flat([s.behaviour_logprobs for s in samples]),
                reference=self._reference(rows) if loss.beta > 0 else None,
                advantages=self._flat([np.full(len(s.token_ids), s.advantage, np.float32) for s in samples]),
                weights=self._flat([s.token_weights for s in samples]),
                sequence=self._flat([np.full(len(s.token_ids), i) for i, s in enumerate(samples)]),
                entropy=entropy,
                levels=[s.level for s in samples],
            )
            part, figures = policy_loss(tokens, loss)
            # DeepSpeed averages gradients over the ranks; the loss is a sum over them.
            self._engine.set_gradient_accumulation_boundary(number == len(batch.micro_batches))
            self._engine.backward(part * self._world_size)
            if number == len(batch.micro_batches):
                norm = self._gradient_norm()
            self._engine.step()
            statistics = statistics.merged(figures)
        return TrainReport(statistics, float(self._engine.get_global_grad_norm() or norm), learning_rate)

    def logprobs(self, samples: tuple[TrainSample, ...]) -> list[Any]:
        """Log-probabilities [T] of each sample's completion under the policy as it is now."""
        self._engine.eval()
        with torch.no_grad():
            flat = self._engine(self._lay_out(samples, self._device))[0].cpu()
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
        schedule = self._engine.lr_scheduler.state_dict()
        return EngineState(weights, moments, {k: v for one in every for k, v in one.items()}, steps, schedule)

    def restore(self, state: EngineState) -> None:
        """Go on where `state` was taken, on any number of ranks; a rank that was not there keeps its generators."""
        self._masters().write(state.weights, state.moments, state.optimizer_steps)
        scheduler = self._engine.lr_scheduler
        scheduler.load_state_dict(dict(state.schedule))
        # The scheduler sets the rate after a step only; and with another run.steps it is another one by now.
        groups = self._engine.basic_optimizer.param_groups
        for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)
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

    @property
    def _learning_rate(self) -> float:
        return float(self._engine.get_lr()[0])

    def _gradient_norm(self) -> float:
        """Norm of the gradient where DeepSpeed tells none: stage 0 in float32, each parameter has all of it."""
        gradients = [p.grad.norm() for p in self._policy.parameters() if p.requires_grad and p.grad is not None]
        return float(torch.stack(gradients).norm()) if gradients else 0.0

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
