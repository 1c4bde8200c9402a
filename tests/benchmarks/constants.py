"""Measures the Constants of simulation.py on the real parts; each function measures the fields that it returns.

Seconds of rank 0 are processor time, not wall time, so that they are valid if other processes, such as the actors of
the measurement, share the cores. If they include threads of a pool or of Ray, they are an upper bound of the serial
work of rank 0. Linear functions are fitted by least squares of the relative error. It takes a minute or two.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count, cycle, islice, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from simulated_parts import Constants
from throughput import learner_alone

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.config import Config
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.lora.payload import pack
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.rewards import RewardScorer, Scores
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.rollout.pool import RolloutPool
from adagrpo_ray.sampling.batch import training_samples
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.training.preflight import Inputs
from adagrpo_ray.types import Completion, GenerationRequest, Prompt

ROUNDS = 3  # measurements of everything, after one for warm-up
SEQUENCES = (128, 64, 32, 8, 1)  # sequences in an engine at a time
GROUPS, COMPLETIONS = (64, 512, 2000), (2, 8)  # groups of a step, completions of a group
BYTES = (1_000, 100_000, 10_000_000, 100_000_000)  # size of an object in the store
RECEIVERS, CALLS = 8, 256  # trivial actors, and calls to them at a time
TRAINED = 16  # groups of the learner's batch, as in a step of tiny-cpu.yaml
Fields = dict[str, Any]
Answers = list[tuple[Completion, ...]]


def measure(config: Config, inputs: Inputs) -> tuple[Constants, list[int], list[int]]:
    """The constants, and the lengths of the completions and of the prompts in the measurement of the engine."""
    with asyncio.Runner() as loop:
        started = loop.run(RolloutEngine.start(inputs.model_path, inputs.max_model_len, config))
        decoding, answers, prompt_lengths = loop.run(engine(started, config, inputs))
        sending = loop.run(adapter(started, config, inputs))
        loop.run(started.stop())
        scoring = loop.run(scorer(config, inputs, answers))
    completions = [completion for answer in answers for completion in answer]
    controller = [scoring.pop("handing_over"), sampler(config, inputs, completions)]
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        actors = _trivial_actors(completions[: max(COMPLETIONS)])
        in_store, packing = store(), batches(config, inputs, completions, ray.put)
        with asyncio.Runner() as loop:
            calling = loop.run(calls(actors, config, inputs))
            sent = loop.run(fan_out(actors, sending["adapter_bytes"]))
    finally:
        ray.shutdown()
    controller.append(calling.pop("calling"))
    constants = Constants(
        **decoding,
        **sending,
        **scoring,
        **in_store,
        **packing,
        **calling,
        **sent,
        request_seconds=sum(part[0] for part in controller),
        completion_seconds=sum(part[1] for part in controller),
        pending_seconds=controller[1][2],
        learner_seconds_per_token=1 / learner_alone(config, inputs, answers[:TRAINED]),
        max_sequences=config.rollout.max_num_seqs,
        merged=config.rollout.lora_mode == "merged",
        reward_workers=config.rewards.workers,
    )
    return constants, [len(c.token_ids) for c in completions], prompt_lengths


def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Non-negative least squares: the coefficients [C] of `rows` [N, C] that fit `seconds` [N] by relative error."""
    weighted = np.asarray(rows, np.float64) / np.asarray(seconds)[:, None]
    active, found = list(range(weighted.shape[1])), np.zeros(weighted.shape[1])
    while active:
        found[active] = np.linalg.lstsq(weighted[:, active], np.ones(len(weighted)), rcond=None)[0]
        lowest = min(active, key=found.__getitem__)
        if found[lowest] >= 0:
            break
        active.remove(lowest)
        found[lowest] = 0.0
    return [float(coefficient) for coefficient in found]


async def engine(started: RolloutEngine, config: Config, inputs: Inputs) -> tuple[Fields, Answers, list[int]]:
    """Measure decoding and prefill, with groups and sampling of the configuration; also the answers and prompt lengths.

    A batch that begins at the same time takes one iteration for each token of its longest completion, and its
    iterations decode in total as many sequences as there are tokens. So the fit can use real completions of any length.
    """
    a, most = config.algorithm, config.rollout.max_new_tokens
    prompts, seeds = cycle(inputs.prompts.train), count()
    rows, seconds = list[tuple[float, ...]](), list[float]()
    answers, prompt_lengths = Answers(), list[int]()
    for number, sequences, tokens in product(range(1 + ROUNDS), SEQUENCES, (most, 1)):
        n = min(a.group_size, sequences)
        requests = [
            GenerationRequest(p.id, p.token_ids, n, a.sampling, tokens, next(seeds))
            for p in islice(prompts, min(sequences, config.rollout.max_num_seqs) // n)
        ]
        began = time.perf_counter()
        groups = await asyncio.gather(*(started.generate(request) for request in requests))
        ended = time.perf_counter()
        lengths = [len(c.token_ids) for group in groups for c in group]
        prompt_tokens = [len(request.prompt_token_ids) for request in requests]
        if tokens == most:
            answers += groups
            prompt_lengths += prompt_tokens
        if number:
            rows.append((max(lengths), sum(lengths), sum(prompt_tokens)))
            seconds.append(ended - began)
    names = ("decode_seconds", "decode_seconds_per_sequence", "prefill_seconds_per_token")
    return dict(zip(names, fit(rows, seconds), strict=True)), answers, prompt_lengths


async def adapter(started: RolloutEngine, config: Config, inputs: Inputs) -> Fields:
    """Measure packing and applying adapters of two ranks, and so of two sizes."""
    lora, dtype = config.model.lora, getattr(torch, config.model.dtype)
    policy = load_policy(inputs.model_path, config)
    named = {n.replace(".default.", "."): p.detach() for n, p in policy.named_parameters() if p.requires_grad}
    other = 64 * lora.r if config.rollout.lora_mode == "merged" else 1  # vLLM's LoRA slots take at most the rank
    rows, packing, applying = list[tuple[float, ...]](), list[float](), list[float]()
    for version, rank in enumerate([other, lora.r] * (1 + ROUNDS)):
        began = time.perf_counter()
        weights = pack(version, {n: _of_rank(n, t, rank) for n, t in named.items()}, rank, lora.alpha, dtype)
        packed = time.perf_counter()
        await started.apply(weights)
        applied = time.perf_counter()
        if version > 1:
            rows.append((1, weights.data.nbytes))
            packing.append(packed - began)
            applying.append(applied - packed)
    names = ("pack_seconds", "pack_seconds_per_byte", "apply_seconds", "apply_seconds_per_byte")
    found = (*fit(rows, packing), *fit(rows, applying))
    return {**dict(zip(names, found, strict=True)), "adapter_bytes": int(rows[-1][1])}


def _of_rank(name: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """A or B of a LoRA with its rows or columns repeated or cut to `rank`."""
    axis = 0 if ".lora_A." in name else 1
    return tensor.index_select(axis, torch.arange(rank) % tensor.shape[axis])


async def scorer(config: Config, inputs: Inputs, answers: Answers) -> Fields:
    """Seconds of a scoring process for a group; `handing_over` are those of rank 0 for a group and for a completion."""
    scoring = RewardScorer(config.rewards, config.data.format)
    wall, own = list[float](), list[float]()
    try:
        for _ in range(1 + ROUNDS):
            began, used = time.perf_counter(), time.process_time()
            await asyncio.gather(*map(scoring.score, cycle(inputs.prompts.train), answers))
            wall.append((time.perf_counter() - began) / len(answers))
            own.append((time.process_time() - used) / len(answers))
    finally:
        scoring.close()
    reward = statistics.median(wall[1:]) * config.rewards.workers
    return {"reward_seconds": reward, "handing_over": (statistics.median(own[1:]), 0.0)}


def sampler(config: Config, inputs: Inputs, completions: Sequence[Completion]) -> tuple[float, ...]:
    """Seconds of rank 0 for a request, for a completion, and for each open group whenever a group ends."""
    rows, seconds = list[tuple[float, ...]](), list[float]()
    for number, groups, n in product(range(1 + ROUNDS), GROUPS, COMPLETIONS):
        began = time.thread_time()
        collection = _collect(config, inputs, completions, groups, n)
        if number:
            sizes = [len(group.last.completions) for group in collection.attempts]
            rows.append((len(sizes), sum(sizes), len(sizes) * (len(sizes) - 1) / 2))
            seconds.append(time.thread_time() - began)
    return tuple(fit(rows, seconds))


def _collect(config: Config, inputs: Inputs, completions: Sequence[Completion], groups: int, n: int) -> Any:
    """Collect a step with the real sampler, a fake engine that answers the requests in order, and a fake scorer."""
    open_requests: deque[asyncio.Future[None]] = deque()

    def answer_next() -> None:
        open_requests.popleft().set_result(None)
        if open_requests:
            asyncio.get_running_loop().call_soon(answer_next)

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        open_requests.append(asyncio.get_running_loop().create_future())
        if len(open_requests) == 1:
            asyncio.get_running_loop().call_soon(answer_next)
        await open_requests[-1]
        return tuple(completions[: request.n])

    async def score(prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        rewards = np.arange(len(group), dtype=np.float32) % 2
        return Scores(rewards, np.stack([rewards] * len(functions), axis=1)), rewards > 0

    functions = [f.function for f in config.rewards.functions]
    settings = config.algorithm.model_copy(update={"prompts_per_step": groups, "group_size": n, "budget": None})
    order = PromptOrder(inputs.prompts.train, config.run.seed, config.data.shuffle)
    sampling = AdaptiveSampler(
        settings, make_method(settings, functions), order, generate, score, max_new_tokens=1, seed=config.run.seed
    )
    with asyncio.Runner() as loop:  # `run` would format the whole result at its end in Python 3.11
        return loop.get_loop().run_until_complete(sampling.collect(1))


def batches(config: Config, inputs: Inputs, completions: Sequence[Completion], put: Callable[[Any], Any]) -> Fields:
    """Measure the time from the groups of a step to its batches in the store."""
    collection = _collect(config, inputs, completions, GROUPS[1], max(COMPLETIONS))
    seconds: list[float] = []
    for _ in range(1 + ROUNDS):
        began = time.process_time()
        samples = training_samples(collection.ready, config.algorithm, config.rollout.max_new_tokens)
        packed = pack_batches(
            1, samples, config.learner.ranks, config.learner.micro_batch_tokens, config.learner.packing_with(False)
        )
        references = [put(batch) for batch in packed]
        seconds.append((time.process_time() - began) / len(samples))
        del references
    return {"batch_seconds": statistics.median(seconds[1:])}


def _trivial_actors(completions: Sequence[Completion]) -> list[Any]:
    """Actors with the answers of rollout actors, but without any work."""

    @ray.remote(num_cpus=0, max_concurrency=2 * CALLS)
    class Trivial:
        def __init__(self, completions: Sequence[Completion]) -> None:
            self._completions = completions

        async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
            return tuple(self._completions[: request.n])

        async def apply(self, weights: Any) -> SimpleNamespace:
            return SimpleNamespace(version=weights.version, digest=weights.digest)

    return [Trivial.remote(completions) for _ in range(RECEIVERS)]  # type: ignore[attr-defined]


def store() -> Fields:
    """Measure putting arrays of four sizes."""
    rows, seconds = list[tuple[float, ...]](), list[float]()
    for number, size in product(range(1 + ROUNDS), BYTES):
        array = np.ones(size, np.uint8)
        began = time.perf_counter()
        reference = ray.put(array)
        if number:
            rows.append((1, size))
            seconds.append(time.perf_counter() - began)
        del reference
    put, put_byte = fit(rows, seconds)
    return {"put_seconds": put, "put_seconds_per_byte": put_byte}


async def calls(actors: list[Any], config: Config, inputs: Inputs) -> Fields:
    """Seconds of a call of an idle actor; `calling` are those of rank 0 for a call and for a completion."""
    pool = RolloutPool(actors, config.rollout)
    prompt, sampling = inputs.prompts.train[0], config.algorithm.sampling
    requests = {n: GenerationRequest(prompt.id, prompt.token_ids, n, sampling, 1, 0) for n in COMPLETIONS}
    rows, own = list[tuple[float, ...]](), list[float]()
    for number, n in product(range(1 + ROUNDS), COMPLETIONS):
        used = time.process_time()
        await asyncio.gather(*(pool.generate(requests[n]) for _ in range(CALLS)))
        if number:
            rows.append((CALLS, CALLS * n))
            own.append(time.process_time() - used)
    alone: list[float] = []
    for _ in range(100):
        began = time.perf_counter()
        await pool.generate(requests[max(COMPLETIONS)])
        alone.append(time.perf_counter() - began)
    return {"call_seconds": statistics.median(alone), "calling": tuple(fit(rows, own))}


async def fan_out(actors: list[Any], size: int) -> Fields:
    """Measure sending one object to 1 to 8 actors through the real pool."""
    weights: Any = SimpleNamespace(version=0, digest="", data=np.ones(size, np.uint8))
    rows, own = list[tuple[float, ...]](), list[float]()
    for number, receivers in product(range(1 + 10 * ROUNDS), range(1, len(actors) + 1)):
        pool = RolloutPool(actors[:receivers], RolloutSettings(stall_timeout_s=60.0))
        used = time.process_time()
        await pool.apply(weights)
        if number:
            rows.append((1, receivers))
            own.append(time.process_time() - used)
    return {"dispatch_seconds": fit(rows, own)[1]}
