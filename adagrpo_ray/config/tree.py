"""One pydantic tree for every setting. Each field's description is its line of documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, model_validator

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.conflicts import conflicts
from adagrpo_ray.config.reasoning_gym import ReasoningGymSettings
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.config.sampling import SamplingParams
from adagrpo_ray.config.section import (
    Amount,
    Count,
    Decay,
    Digits,
    Gibibytes,
    PositiveInt,
    Resources,
    Seconds,
    Section,
    Share,
)
from adagrpo_ray.config.tracking import TrackingSettings

PLAIN = "none"
"""`data.chat_template` of prompts that are plain text."""

Packing = Literal["padded", "packed", "shared"]
"""How the samples of a micro-batch lie in the model's input."""

TEMPLATE_RESERVED = {
    *("conversation", "conversations", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask", "raise_exception", "strftime_now", "self"),
    *("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"),
}
"""Arguments of `apply_chat_template` and of every template that are given here already."""


def _not_reserved(name: str) -> str:
    if name in TEMPLATE_RESERVED:
        raise ValueError(f"{name} is given to every chat template already; remove it")
    return name


def _no_word_for_a_boolean(value: JsonValue) -> JsonValue:
    if isinstance(value, str) and value.strip().lower() in ("yes", "no", "true", "false"):
        raise ValueError("a text is true in every template; write true or false without quotes")
    return value


TemplateArgument = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$"), AfterValidator(_not_reserved)]

TemplateValue = Annotated[JsonValue, AfterValidator(_no_word_for_a_boolean)]


class RunSettings(Section):
    """The run itself."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=255,
        description="folder of the run; null: config name and time",
    )
    output_dir: str = Field(
        "runs", min_length=1, description="where run folders are made: a path, or a URL as in s3://bucket/runs"
    )
    steps: PositiveInt = Field(100, description="training steps")
    seed: Count = Field(0, description="seed of data order, sampling and initial LoRA weights")
    max_restarts: Count = Field(
        2, description="how often a run goes on from its last checkpoint by itself when a learner rank dies"
    )
    samples_per_step: Count = Field(
        4, description="groups of each step that samples.jsonl shows in full, resampled ones first; 0: none"
    )
    report: bool = Field(True, description="leave report.html and plots/ in the run folder at the end")
    ray_address: str | None = Field(
        None,
        min_length=1,
        description="Ray cluster to join ('auto' or an address); null: RAY_ADDRESS if set, else a local one",
    )


class LoraSettings(Section):
    """The adapter that is trained."""

    r: Literal[1, 8, 16, 32, 64, 128, 256] = Field(16, description="rank of the adapter; vLLM serves these ranks")
    alpha: float = Field(32.0, gt=0.0, description="scale of the adapter is alpha / r")
    dropout: Decay = Field(0.0, description="dropout before the adapter in updates, none elsewhere")
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers that get an adapter",
    )


class ModelSettings(Section):
    """The base model and its adapter."""

    path: str = Field(
        "tiny",
        min_length=1,
        description="'tiny' (built on first use), a folder, a .gguf file (also package:NAME/file.gguf), or a Hub name",
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="type of the base weights, everywhere")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    adapter: str | None = Field(
        None, min_length=1, description="PEFT adapter folder to continue from; null: a new adapter"
    )
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
    seed: Count = Field(0, description="seed of the problems and of the tiny base model")


class ColumnSettings(Section):
    """Which columns of the data set are what; a dot reaches into a nested value."""

    prompt: str = Field("prompt", min_length=1, description="the problem: text, or a list of chat messages")
    ground_truth: str = Field("solution", min_length=1, description="ground truth for the reward functions")
    difficulty: str | None = Field(None, min_length=1, description="difficulty class for the reports")
    problem: str | None = Field(
        None,
        min_length=1,
        description="names the problem of a row: rows of one problem are all held out or none; null: its last user "
        "message without differences in white space",
    )


class FormatSettings(Section):
    """The markers that the prompt asks for and the reward functions look for."""

    think_end: str = Field("</think>", min_length=1, description="marks the end of thinking")
    answer_start: str = Field("SOLUTION_START_FLAG", min_length=1, description="goes before the answer")
    answer_end: str = Field("SOLUTION_END_FLAG", min_length=1, description="goes after the answer")


class DataSettings(Section):
    """Prompts to train on, and prompts kept aside to measure on."""

    source: str = Field(
        "arithmetic",
        min_length=1,
        description="'arithmetic' or 'reasoning_gym' (generated), a .jsonl, .json, .csv, .tsv or .parquet file, a "
        "pattern of such files (*), a folder, or a Hub name",
    )
    subset: str | None = Field(None, min_length=1, description="configuration of a Hub data set or of a copy of one")
    split: str = Field(
        "train", min_length=1, description="split of a Hub data set or of a folder; a single file is 'train'"
    )
    columns: ColumnSettings = Field(ColumnSettings(), description="which columns are what")
    format: FormatSettings = Field(FormatSettings(), description="markers of the answer format")
    system_prompt: str | None = Field(
        None,
        description="system message, with the markers' names of data.format in braces; null: none, or the data's own",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="Jinja file in place of the model's chat template; 'none': prompts are plain text; null: the "
        "model's own",
    )
    template_kwargs: dict[TemplateArgument, TemplateValue] = Field(
        {}, description="arguments of the model's chat template by name, as in enable_thinking: false"
    )
    train_prompts: PositiveInt | None = Field(
        None, description="how many prompts to train on; null: all there are, 2000 of generated ones"
    )
    eval_prompts: Count = Field(128, description="how many prompts to keep aside to measure accuracy on")
    length_quantile: float = Field(1.0, gt=0.0, le=1.0, description="drop prompts longer than this quantile of lengths")
    shuffle: bool = Field(True, description="new order of the prompts for each pass over them")


class RolloutSettings(Section):
    """The vLLM rollout actors."""

    actors: PositiveInt = Field(1, description="rollout actors that a run begins with")
    max_actors: PositiveInt | None = Field(
        None, description="rollout actors that a run may grow to as nodes join the cluster; null: rollout.actors"
    )
    max_restarts: Count = Field(10, description="rollout actors that a run replaces when they die or hang")
    tensor_parallel_size: PositiveInt = Field(1, description="GPUs of one rollout actor")
    cpus: Amount = Field(1.0, description="CPUs that Ray reserves for one rollout actor")
    resources: Resources = Field({}, description="custom Ray resources of one rollout actor: names of its nodes' kind")
    max_new_tokens: PositiveInt = Field(256, description="most tokens of a completion")
    max_model_len: PositiveInt | None = Field(None, description="most tokens of prompt and completion; null: as needed")
    max_num_seqs: PositiveInt = Field(128, description="sequences that one actor decodes at a time")
    kv_cache_gib: Gibibytes | None = Field(None, description="size of the KV cache; null: by gpu_memory_utilization")
    gpu_memory_utilization: float = Field(
        0.45, gt=0.0, le=1.0, description="share of a GPU's memory that vLLM may take"
    )
    sleep: bool | None = Field(
        None,
        description="on one shared GPU, vLLM leaves it while the learner trains; null: where both do not fit, "
        "on a Ray of our own",
    )
    enforce_eager: bool = Field(False, description="no compilation: starts faster, generates slower")
    lora_mode: Literal["adapter", "merged"] = Field(
        "adapter", description="LoRA served by vLLM's LoRA kernels, or merged into the base weights"
    )
    start_timeout_s: Seconds = Field(600.0, description="seconds that a rollout actor may take to start")
    request_timeout_s: Seconds = Field(1800.0, description="seconds that one request may take")
    stall_timeout_s: Seconds = Field(
        300.0, description="seconds after which an engine counts as hung: without a step, or in taking weights"
    )


class LearnerSettings(Section):
    """The DeepSpeed learner."""

    ranks: PositiveInt = Field(1, description="learner actors, one a rank")
    cpus: Amount = Field(1.0, description="CPUs that Ray reserves for one rank")
    resources: Resources = Field({}, description="custom Ray resources of one rank: names of its nodes' kind")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="what DeepSpeed shards over the ranks")
    learning_rate: float = Field(1e-5, gt=0.0, le=1.0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0.0, description="AdamW's weight decay")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's moment decays")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="decay after the warm-up")
    warmup_ratio: Share = Field(0.1, description="share of the steps in which the learning rate rises to its peak")
    max_grad_norm: float = Field(1.0, gt=0.0, description="largest norm of the gradient")
    max_skipped_updates: PositiveInt | None = Field(
        3,
        description="updates skipped in a row, because a loss, log-probability or gradient was not finite, that end "
        "the run; 1: the first one does; null: the run continues whatever is skipped",
    )
    micro_batch_tokens: PositiveInt = Field(16384, description="most tokens, padding included, of a micro-batch")
    packing: Packing | None = Field(
        None,
        description="samples of a micro-batch in padded rows, packed in one row, or shared: in one row with each "
        "prompt once; null: packed with flash-attention, else shared if the model can",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    offload_optimizer: bool = Field(False, description="keep optimizer states and float32 weights in host memory")

    def packing_with(self, flash: bool) -> Packing:
        """How the samples of a micro-batch lie, given whether flash-attention runs here, if the model can share.

        Without flash-attention a packed row takes a mask of [S x S] and computes attention between samples for nothing.
        """
        return self.packing or ("packed" if flash else "shared")


class EvaluationSettings(Section):
    """Accuracy on the held-out prompts."""

    samples: PositiveInt = Field(1, description="completions of each held-out prompt")
    sampling: SamplingParams = Field(SamplingParams(), description="their sampling parameters")
    every: Count = Field(0, description="steps between measurements while training; 0: only before and after")


class CheckpointSettings(Section):
    """What a run keeps to go on from."""

    every: Count = Field(0, description="steps between checkpoints, which wait for all rollouts; 0: one at the end")
    save_total_limit: PositiveInt = Field(2, description="how many checkpoints stay, the newest ones")
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
    reasoning_gym: ReasoningGymSettings = Field(ReasoningGymSettings(), description="generated reasoning tasks")
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
    def _go_together(self) -> Config:
        """Refuse settings that are each fine and do not go together."""
        if problems := list(conflicts(self)):
            raise ValueError("; ".join(problems))
        return self
