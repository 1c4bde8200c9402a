"""One pydantic tree for every setting. Each field's description is its line of documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from adagrpo_ray.config.algorithm import AlgorithmSettings, SamplingSettings
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.config.section import Digits, PositiveInt, Resources, Section, Share
from adagrpo_ray.config.tracking import TrackingSettings


class RunSettings(Section):
    """The run itself."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder of the run; null: config name and time"
    )
    folder: str = Field(
        "runs", min_length=1, description="where run folders are made: a path, or a URL as in s3://bucket/runs"
    )
    steps: PositiveInt = Field(100, description="training steps")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of data order, sampling and initial LoRA weights")
    max_restarts: int = Field(
        2, ge=0, description="how often a run goes on from its last checkpoint by itself when a learner rank dies"
    )
    samples_per_step: int = Field(
        4, ge=0, description="groups of each step that samples.jsonl shows in full, resampled ones first; 0: none"
    )
    report: bool = Field(True, description="leave report.html and plots/ in the run folder at the end")
    ray_address: str | None = Field(
        None, description="Ray cluster to join ('auto' or an address); null: RAY_ADDRESS if set, else a local one"
    )


class LoraSettings(Section):
    """The adapter that is trained."""

    r: Literal[1, 8, 16, 32, 64, 128, 256] = Field(16, description="rank of the adapter; vLLM serves these ranks")
    alpha: float = Field(32.0, gt=0.0, description="scale of the adapter is alpha / r")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout before the adapter while training")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers that get an adapter",
    )


class ModelSettings(Section):
    """The base model and its adapter."""

    path: str = Field("tiny", min_length=1, description="'tiny' (built on first use), a folder, or a Hub name")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="type of the base weights, everywhere")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    adapter: str | None = Field(None, description="PEFT adapter folder to continue from; null: a new adapter")
    lora: LoraSettings = Field(LoraSettings(), description="the adapter that is trained")


class ArithmeticSettings(Section):
    """The embedded task: additions of two numbers, one difficulty class for each number of digits.

    The tiny base model learned to keep the carry with the probability given here and to drop it otherwise:
    that is its success rate on the class.
    """

    keep_carry: dict[Digits, Share] = Field(
        {2: 0.75, 3: 0.35, 4: 0.12, 5: 0.04},
        min_length=1,
        description="digits of the summands, 2 to 9: success rate of the tiny base model",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the problems and of the tiny base model")


class ColumnSettings(Section):
    """Which columns of the data set are what; a dot reaches into a nested value."""

    prompt: str = Field("prompt", min_length=1, description="the problem: text, or a list of chat messages")
    answer: str = Field("solution", min_length=1, description="ground truth for the reward functions")
    level: str | None = Field(None, description="difficulty class for the reports")


class FormatSettings(Section):
    """The markers that the prompt asks for and the reward functions look for."""

    think_end: str = Field("</think>", min_length=1, description="marks the end of thinking")
    answer_start: str = Field("SOLUTION_START_FLAG", min_length=1, description="goes before the answer")
    answer_end: str = Field("SOLUTION_END_FLAG", min_length=1, description="goes after the answer")


class DataSettings(Section):
    """Prompts to train on, and prompts kept aside to measure on."""

    source: str = Field(
        "arithmetic", min_length=1, description="'arithmetic' (generated), a .jsonl or .parquet file, or a Hub name"
    )
    subset: str | None = Field(None, description="configuration of a Hub data set")
    split: str = Field("train", min_length=1, description="split of a Hub data set")
    columns: ColumnSettings = Field(ColumnSettings(), description="which columns are what")
    format: FormatSettings = Field(FormatSettings(), description="markers of the answer format")
    system_prompt: str | None = Field(
        "Think between <think> and {think_end}, then put the final number between {answer_start} and {answer_end}.",
        description="system message, with the markers' names in braces; null: none, or the data's own",
    )
    train_prompts: PositiveInt | None = Field(None, description="how many prompts to train on; null: all there are")
    held_out_prompts: int = Field(128, ge=0, description="how many prompts to keep aside to measure accuracy on")
    length_quantile: float = Field(1.0, gt=0.0, le=1.0, description="drop prompts longer than this quantile of lengths")
    shuffle: bool = Field(True, description="new order of the prompts for each pass over them")


class RolloutSettings(Section):
    """The vLLM rollout actors."""

    actors: PositiveInt = Field(1, description="rollout actors that a run begins with")
    max_actors: PositiveInt | None = Field(
        None, description="rollout actors that a run may grow to as nodes join the cluster; null: rollout.actors"
    )
    max_restarts: int = Field(10, ge=0, description="rollout actors that a run replaces when they die or hang")
    tensor_parallel: PositiveInt = Field(1, description="GPUs of one rollout actor")
    cpus: float = Field(1.0, ge=0.0, description="CPUs that Ray reserves for one rollout actor")
    resources: Resources = Field({}, description="custom Ray resources of one rollout actor: names of its nodes' kind")
    max_new_tokens: PositiveInt = Field(256, description="most tokens of a completion")
    max_model_len: PositiveInt | None = Field(None, description="most tokens of prompt and completion; null: as needed")
    max_sequences: PositiveInt = Field(128, description="sequences that one actor decodes at a time")
    kv_cache_gib: float | None = Field(None, gt=0.0, description="size of the KV cache; null: by gpu_memory_share")
    gpu_memory_share: float = Field(0.45, gt=0.0, le=1.0, description="share of a GPU's memory that vLLM may take")
    sleep: bool | None = Field(
        None,
        description="on one shared GPU, vLLM leaves it while the learner trains; null: where both do not fit, "
        "on a Ray of our own",
    )
    eager: bool = Field(False, description="no compilation: starts faster, generates slower")
    sync: Literal["adapter", "merged"] = Field(
        "adapter", description="LoRA served by vLLM's LoRA kernels, or merged into the base weights"
    )
    start_timeout_s: float = Field(600.0, gt=0.0, description="seconds that a rollout actor may take to start")
    request_timeout_s: float = Field(1800.0, gt=0.0, description="seconds that one request may take")
    stall_timeout_s: float = Field(
        300.0, gt=0.0, description="seconds after which an engine counts as hung: without a step, or in taking weights"
    )


class LearnerSettings(Section):
    """The DeepSpeed learner."""

    ranks: PositiveInt = Field(1, description="learner actors, one a rank")
    cpus: float = Field(1.0, ge=0.0, description="CPUs that Ray reserves for one rank")
    resources: Resources = Field({}, description="custom Ray resources of one rank: names of its nodes' kind")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="what DeepSpeed shards over the ranks")
    learning_rate: float = Field(1e-5, gt=0.0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0.0, description="AdamW's weight decay")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="AdamW's moment decays")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="decay after the warm-up")
    warmup: Share = Field(0.1, description="share of the steps in which the learning rate rises to its peak")
    gradient_clip: float = Field(1.0, gt=0.0, description="largest norm of the gradient")
    micro_batch_tokens: PositiveInt = Field(16384, description="most tokens, padding included, of a micro-batch")
    layout: Literal["padded", "packed"] | None = Field(
        None, description="samples of a micro-batch in padded rows, or in one row; null: packed with flash-attention"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    offload_optimizer: bool = Field(False, description="keep optimizer states and float32 weights in host memory")

    def packed(self, flash: bool) -> bool:
        """Whether the samples of a micro-batch lie in one row, given whether flash-attention runs here.

        Without it such a row takes a mask of [S x S], and attends in vain from each sample to the others.
        """
        return flash if self.layout is None else self.layout == "packed"


class EvaluationSettings(Section):
    """Accuracy on the held-out prompts."""

    samples: PositiveInt = Field(1, description="completions of each held-out prompt")
    sampling: SamplingSettings = Field(SamplingSettings(), description="their sampling parameters")
    every: int = Field(0, ge=0, description="steps between measurements while training; 0: only before and after")


class CheckpointSettings(Section):
    """What a run keeps to go on from."""

    every: int = Field(0, ge=0, description="steps between checkpoints, which wait for all rollouts; 0: one at the end")
    keep_last: PositiveInt = Field(2, description="how many checkpoints stay, the newest ones")
    keep_best: bool = Field(
        False,
        description="the checkpoint with the best held-out accuracy stays too, named by the file best; "
        "one is made after each measurement that is the best so far",
    )


class Config(Section):
    """All settings of a run."""

    run: RunSettings = Field(RunSettings(), description="the run itself")
    model: ModelSettings = Field(ModelSettings(), description="base model and adapter")
    arithmetic: ArithmeticSettings = Field(ArithmeticSettings(), description="the embedded task and tiny model")
    data: DataSettings = Field(DataSettings(), description="prompts")
    rewards: RewardsSettings = Field(RewardsSettings(), description="scoring")
    algorithm: AlgorithmSettings = Field(AlgorithmSettings(), description="adaptive GRPO")
    rollout: RolloutSettings = Field(RolloutSettings(), description="vLLM rollout actors")
    learner: LearnerSettings = Field(LearnerSettings(), description="DeepSpeed learner")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="held-out accuracy")
    checkpoint: CheckpointSettings = Field(CheckpointSettings(), description="what a run keeps to go on from")
    tracking: TrackingSettings = Field(TrackingSettings(), description="trackers beside TensorBoard")

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] | Mapping[str, object] = ()) -> Config:
        """The configuration in a YAML file, changed by `overrides`; see `adagrpo_ray.config.load.load_config`."""
        from adagrpo_ray.config.load import load_config

        return load_config(path, overrides)

    @property
    def uses_phases(self) -> bool:
        """Whether some completions are sampled with other parameters after the thought."""
        a = self.algorithm
        rungs = [rung for trigger in a.triggers for rung in trigger.rungs]
        own = a.ladder is not None  # nobody knows beforehand what it will ask for
        return own or any(s.answer is not None for s in (a.sampling, self.evaluation.sampling, *rungs))

    @model_validator(mode="after")
    def _sizes_fit(self) -> Config:
        """Refuse sizes that are each fine and do not fit together."""
        a, r = self.algorithm, self.rollout
        problems = []
        fewest, most = a.allocation.sizes(a.group_size) if a.allocation.enabled else (a.group_size, a.group_size)
        if fewest > most:
            problems.append(
                f"algorithm.allocation.min_group={fewest} is more than max_group={most}; lower the first or raise "
                "the second (null: half of group_size, and group_size)"
            )
        cost = max(most, a.group_size) * (r.max_new_tokens if a.budget_unit == "tokens" else 1)
        if a.budget is not None and a.budget < cost:
            problems.append(
                f"algorithm.budget={a.budget} {a.budget_unit} is smaller than the {cost} that one group may take "
                f"(algorithm.group_size={a.group_size}, algorithm.allocation.max_group={most}, "
                f"rollout.max_new_tokens={r.max_new_tokens}), so such a group can never be sampled; raise the budget "
                "or make the groups smaller"
            )
        for key, named in (("rollout.resources", r.resources), ("learner.resources", self.learner.resources)):
            if taken := {"memory", "object_store_memory"} & set(named):
                problems.append(f"{key} names Ray's own resource {taken.pop()!r}; give custom ones, as rollout: 1")
        if r.max_actors is not None and r.max_actors < r.actors:
            problems.append(
                f"rollout.max_actors={r.max_actors} is less than the rollout.actors={r.actors} that a run begins with; "
                "raise the first or lower the second"
            )
        if r.max_model_len is not None and r.max_model_len <= r.max_new_tokens:
            problems.append(
                f"rollout.max_model_len={r.max_model_len} leaves no room for a prompt beside "
                f"rollout.max_new_tokens={r.max_new_tokens}; raise the first or lower the second"
            )
        if a.overlong_buffer is not None and a.overlong_buffer > r.max_new_tokens:
            problems.append(
                f"algorithm.overlong_buffer={a.overlong_buffer} is more than rollout.max_new_tokens="
                f"{r.max_new_tokens}, so that every completion would be penalised; lower it"
            )
        if self.learner.offload_optimizer and self.learner.zero_stage == 0:
            problems.append(
                "learner.offload_optimizer=true is a part of ZeRO, which learner.zero_stage=0 turns off; set "
                "learner.zero_stage to 1, 2 or 3, or leave the optimizer where it is"
            )
        if r.sleep and a.max_staleness > 0:
            problems.append(
                f"rollout.sleep=true stops all rollouts while the learner trains, and algorithm.max_staleness="
                f"{a.max_staleness} is there to run them meanwhile; set it to 0 or rollout.sleep to false"
            )
        if a.ladder is not None and a.name != "adagrpo":
            problems.append(
                f"algorithm.ladder={a.ladder!r} resamples, which algorithm.name={a.name} does not; leave it out, or "
                "set algorithm.name to adagrpo"
            )
        steps = [t.from_step for t in a.triggers]
        if steps != sorted(set(steps)):
            problems.append(f"algorithm.triggers have from_step {steps}; order them by step, each step once")
        names = [f.function for f in self.rewards.functions]
        if len(set(names)) != len(names):
            problems.append(f"rewards.functions names a function twice: {names}; give each one weight")
        for key, name in (
            ("rewards.correct_by", self.rewards.correct_by),
            ("algorithm.criterion.reward", a.criterion.reward),
        ):
            if name is not None and name not in names:
                problems.append(f"{key}={name!r} is none of rewards.functions {names}; name one of them")
        if a.criterion.reward is not None and a.criterion.kind != "any_above":
            problems.append(
                f"algorithm.criterion.reward={a.criterion.reward!r} counts for kind any_above only, not for "
                f"{a.criterion.kind!r}; leave it out or change the kind"
            )
        if a.sampling.temperature == 0.0 or any(s.temperature == 0.0 for t in a.triggers for s in t.ladder()):
            problems.append(
                "algorithm: a temperature of 0 in training draws the same completion G times, which teaches nothing; "
                "use a temperature above 0"
            )
        if self.evaluation.samples > 1 and self.evaluation.sampling.temperature == 0.0:
            problems.append(
                f"evaluation.samples={self.evaluation.samples} with temperature 0 draws the same completion again; "
                "use samples=1 or a temperature above 0"
            )
        if self.checkpoint.keep_best and not (self.evaluation.every and self.data.held_out_prompts):
            problems.append(
                f"checkpoint.keep_best=true goes by measurements while training, and evaluation.every="
                f"{self.evaluation.every} with data.held_out_prompts={self.data.held_out_prompts} makes none; raise "
                "both above 0 or set keep_best to false"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self
