"""Supervised training of the tiny base model on a correct and an incorrect procedure, by default of addition.

The examples show both procedures equally often. Their solutions differ first at one token, the fork; in additions it is
the first carry. Only that token has a weight in the loss that depends on the wanted success rate, so that the model
begins the correct procedure with this probability. The tokens after it depend on the procedure alone. So the model
learns the correct procedure well even for a class with a success rate of 4 %.

Every prompt starts with the same head, such as a system message. Its keys and values are computed once per batch and
shared, which saves a third of the work. The gradient flows through them as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adagrpo_ray.config.data import ArithmeticSettings, DataSettings, FormatSettings
from adagrpo_ray.data.arithmetic import draw_problem, worked_solution
from adagrpo_ray.data.chat import chat_messages, system_message

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """Sizes and training settings of the tiny model that are not in the configuration.

    Muon trains the matrices of the layers, AdamW the rest. On this task that takes half the steps of AdamW alone.
    """

    hidden: int = 128
    intermediate: int = 256
    layers: int = 4
    heads: int = 4
    head_dim: int = 32
    max_positions: int = 512
    steps: int = 200
    batch: int = 32
    muon_rate: float = 0.02
    adamw_rate: float = 0.02
    warmup: float = 0.1
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Example:
    """The tokens of a problem after the shared head: question, end of the prompt, worked solution.

    `weights` has the weight of each of `token_ids` in the loss, which is 0 for the prompt.
    """

    token_ids: list[int]
    weights: list[float]


Batches = Callable[[int], list[Example]]
"""Returns the examples of a step, from 0. It is called once for each step, in order."""


def addition_examples(
    tokenizer: PreTrainedTokenizerFast, arithmetic: ArithmeticSettings, markers: FormatSettings, size: int
) -> tuple[list[int], Batches]:
    """Return the head and the batches of `size` examples for the base model of the embedded task; see `train_model`.

    The classes take turns by step, so a batch has next to no padding.
    """
    head, tail = prompt_frame(tokenizer, system_message(DataSettings(format=markers)))
    difficulties = sorted(arithmetic.keep_carry.items())
    rng = np.random.default_rng(arithmetic.seed)

    def batch(step: int) -> list[Example]:
        digits, share = difficulties[step % len(difficulties)]
        return [training_example(tokenizer, tail, rng, digits, share, markers) for _ in range(size)]

    return head, batch


def train_model(
    tokenizer: PreTrainedTokenizerFast,
    head: list[int],
    batch: Batches,
    recipe: Recipe,
    seed: int,
    advance: Callable[[], None],
) -> Any:
    """Return a Qwen3ForCausalLM in float32, trained on the examples that `batch` returns for each step.

    All prompts start with the tokens `head`. `advance` is called after each step. The same arguments give the same
    weights on the same machine, since one thread adds up in one order. One thread is also faster on a busy machine: two
    would wait for each other at every small matrix.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _new_model(tokenizer, recipe)
        _train(model, tokenizer, head, batch, recipe, advance)
    finally:
        torch.set_num_threads(threads)
    return model


def training_example(
    tokenizer: PreTrainedTokenizerFast,
    tail: list[int],
    rng: np.random.Generator,
    digits: int,
    keep_carry: float,
    markers: FormatSettings,
) -> Example:
    """Return a random problem of the class with one of the two procedures; `tail` ends its prompt."""
    problem = draw_problem(rng, digits)
    correct, incorrect = (worked_solution(problem, keep, markers) for keep in (True, False))
    prompt = [*tokenizer.encode(problem.text), *tail]
    return forked_example(tokenizer, prompt, correct, incorrect, keep_carry, taken=rng.random() < 0.5)


def forked_example(
    tokenizer: PreTrainedTokenizerFast, prompt: list[int], correct: str, incorrect: str, rate: float, *, taken: bool
) -> Example:
    """Return the prompt with the correct solution if it is `taken`, else with the incorrect one.

    The first token at which they differ has the weight 2 * `rate` or 2 * (1 - `rate`). If both are taken equally often,
    the loss is least if the model takes the correct one with probability `rate`.
    """
    solutions = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in (correct, incorrect)]
    fork = next(i for i, (a, b) in enumerate(zip(*solutions, strict=False)) if a != b)
    solution = solutions[0 if taken else 1]
    weights = [0.0] * len(prompt) + [1.0] * len(solution)
    weights[len(prompt) + fork] = 2 * (rate if taken else 1 - rate)
    return Example([*prompt, *solution], weights)


def prompt_frame(
    tokenizer: PreTrainedTokenizerFast, system: str | None, tools: Sequence[dict[str, Any]] = ()
) -> tuple[list[int], list[int]]:
    """Return the token ids before and after the question in every rendered prompt, with this system message if any."""
    question = "12+34"
    rendered = tokenizer.apply_chat_template(
        chat_messages(question, system), tools=list(tools) or None, tokenize=False, add_generation_prompt=True
    )
    head, _, tail = str(rendered).rpartition(question)
    return tokenizer.encode(head), tokenizer.encode(tail)


def _new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Any:
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def _train(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    head: list[int],
    batch: Batches,
    recipe: Recipe,
    advance: Callable[[], None],
) -> None:
    """Train on a new batch in each step."""
    import torch

    optimizers = _optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=optimizer.param_groups[0]["lr"],
            total_steps=recipe.steps,
            pct_start=recipe.warmup,
            anneal_strategy="linear",
            cycle_momentum=False,
        )
        for optimizer in optimizers
    ]
    model.train()
    for step in range(recipe.steps):
        loss = _loss(model, torch.tensor([head]), *_padded(batch(step), tokenizer.pad_token_id))
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        advance()
    model.eval()


def _optimizers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    import torch

    from adagrpo_ray.toy.muon import Muon

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    return [
        Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.adamw_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay),
    ]


def _padded(examples: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and weights, each [batch, longest]; the weight of padding is 0."""
    import torch

    longest = max(len(e.token_ids) for e in examples)
    ids = [e.token_ids + [pad] * (longest - len(e.token_ids)) for e in examples]
    weights = [e.weights + [0.0] * (longest - len(e.weights)) for e in examples]
    return torch.tensor(ids), torch.tensor(weights)


def _loss(model: Any, head: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean cross-entropy of `ids` [batch, length] after the shared `head` [1, head length]."""
    from torch.nn.functional import cross_entropy

    cache = model(head, use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(ids))
    logits = model(ids[:, :-1], past_key_values=cache).logits
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    wanted = weights[:, 1:].flatten()
    return (losses * wanted).sum() / wanted.sum()
