"""The rollout actors serve the adapter that the learner trained, in both modes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from adagrpo_ray.algorithm.correction import rollout_correction
from adagrpo_ray.algorithm.loss import Tokens, policy_loss
from adagrpo_ray.config import Config
from adagrpo_ray.config.algorithm import LossSettings
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.errors import SyncError
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.layout import pad
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.learner.saving import save_adapter
from adagrpo_ray.lora.payload import AdapterWeights, pack
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.model.pretrained import load_tokenizer
from adagrpo_ray.rollout.actor import RolloutActor
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.rollout.pool import RolloutPool
from adagrpo_ray.types import Completion, GenerationRequest, Prompt, SamplingParams, TrainSample
from tests.support.engine_states import one_rank
from tests.support.held import engines

CONFIG = Config.load(
    "launch/configs/tiny-cpu.yaml", ["learner.learning_rate=0.01", "data.train_prompts=16", "data.eval_prompts=0"]
)
LIMITS = RolloutSettings(request_timeout_s=60.0, stall_timeout_s=60.0)

ENDLESS = 128
"""A request of so many tokens has completions that only this limit ends."""
HOT = SamplingParams(temperature=1.3, top_p=0.97)


@pytest.fixture(scope="module")
def prompt(model_path: str) -> Prompt:
    return load_prompts(CONFIG, load_tokenizer(model_path, CONFIG.model, CONFIG.data)).train[0]


@pytest.fixture(scope="module")
def learner(model_path: str) -> LearnerEngine:
    return one_rank(model_path, CONFIG)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module", params=["adapter", "merged"])
def rollout(request: Any, cluster: None, model_path: str) -> Iterator[tuple[Any, RolloutPool]]:
    config = Config.model_validate(
        CONFIG.model_dump() | {"rollout": CONFIG.rollout.model_dump() | {"lora_mode": request.param}}
    )

    class Watched(RolloutActor):  # here, so that Ray sends the class itself
        async def start(self, *args: Any) -> None:
            await super().start(*args)
            params = self._engine._params
            self._engine._params = lambda request, **how: params(  # type: ignore[method-assign]
                request, ignore_eos=request.max_new_tokens == ENDLESS, **how
            )

        async def drawn(self) -> list[int]:
            """The tokens so far of each completion that is not finished."""
            states = self._engine._engine.output_processor.request_states.values()
            return [len(state.detokenizer.output_token_ids) for state in states]

    actor = ray.remote(Watched).remote()
    ray.get(actor.start.remote(ModelFiles(model_path), 256, config))
    yield actor, RolloutPool([actor], LIMITS)
    ray.get(actor.stop.remote())
    ray.kill(actor)


def ask(prompt: Prompt, seed: int, sampling: SamplingParams | None = None) -> GenerationRequest:
    return GenerationRequest(prompt.id, prompt.token_ids, 4, sampling or SamplingParams(), 64, seed)


def as_sample(prompt: Prompt, completion: Completion, advantage: float) -> TrainSample:
    length = len(completion.token_ids)
    weights = np.full(length, 1 / 200, np.float32)
    return TrainSample(prompt.token_ids, completion.token_ids, completion.logprobs, weights, advantage)


def weights_of(learner: LearnerEngine, version: int) -> AdapterWeights:
    return pack(version, learner.adapter(), CONFIG.model.lora.r, CONFIG.model.lora.alpha, torch.float32)


def logp_difference(learner: LearnerEngine, prompt: Prompt, completions: tuple[Completion, ...]) -> float:
    """Largest difference between the learner's and the rollout actor's log-probabilities."""
    expected = learner.logprobs(tuple(as_sample(prompt, c, 0.0) for c in completions))
    return max(float(np.abs(e - c.logprobs).max()) for e, c in zip(expected, completions, strict=True))


def test_logprobs_agree_after_a_real_training_step(
    rollout: tuple[Any, RolloutPool], learner: LearnerEngine, prompt: Prompt
) -> None:
    _, pool = rollout
    first = weights_of(learner, 0)
    asyncio.run(pool.apply(first))
    before = asyncio.run(pool.generate(ask(prompt, seed=1)))
    assert {c.weight_version for c in before} == {0}
    assert logp_difference(learner, prompt, before) < 1e-4

    samples = [as_sample(prompt, c, advantage) for c, advantage in zip(before, (1.0, -1.0, 0.5, 2.0), strict=True)]
    update = learner.train(pack_batches(1, samples, 1, 4096)[0]).last
    assert update is not None
    assert update.grad_norm > 0
    assert logp_difference(learner, prompt, before) > 1e-3, (
        "the step must have moved the policy, or this test shows nothing"
    )

    second = weights_of(learner, 1)
    assert second.digest != first.digest
    (receipt,) = asyncio.run(pool.apply(second))
    assert (receipt.version, receipt.digest) == (1, second.digest)
    after = asyncio.run(pool.generate(ask(prompt, seed=2)))
    assert {c.weight_version for c in after} == {1}
    assert logp_difference(learner, prompt, after) < 1e-4


def test_merging_starts_from_the_untouched_base_every_time(
    rollout: tuple[Any, RolloutPool], learner: LearnerEngine, prompt: Prompt
) -> None:
    _, pool = rollout
    tensors = learner.adapter()
    asyncio.run(pool.apply(pack(10, tensors, 16, 32.0, torch.float32)))
    once = asyncio.run(pool.generate(ask(prompt, seed=3)))
    for version in range(11, 16):
        scaled = {name: tensor * (1 + 0.1 * version) for name, tensor in tensors.items()}
        asyncio.run(pool.apply(pack(version, scaled, 16, 32.0, torch.float32)))
    asyncio.run(pool.apply(pack(16, tensors, 16, 32.0, torch.float32)))
    again = asyncio.run(pool.generate(ask(prompt, seed=3)))
    for one, two in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.token_ids, two.token_ids)
        np.testing.assert_array_equal(one.logprobs, two.logprobs)


def test_a_second_run_on_the_same_actors_begins_with_version_0_again(
    rollout: tuple[Any, RolloutPool], learner: LearnerEngine, prompt: Prompt
) -> None:
    """Its versions are lower than those of the run before, and each one is served."""
    _, pool = rollout
    tensors = learner.adapter()
    for version in (60, 61, 62, 63, 0, 1, 2, 3):
        scaled = {name: tensor * (1 + 0.1 * version) for name, tensor in tensors.items()}
        asyncio.run(pool.apply(pack(version, scaled, 16, 32.0, torch.float32)))
    asyncio.run(pool.apply(weights_of(learner, 4)))
    completions = asyncio.run(pool.generate(ask(prompt, seed=4)))
    assert {c.weight_version for c in completions} == {4}
    assert logp_difference(learner, prompt, completions) < 1e-4


def test_a_version_that_does_not_arrive_whole_is_refused(
    rollout: tuple[Any, RolloutPool], learner: LearnerEngine
) -> None:
    _, pool = rollout
    weights = weights_of(learner, 20)
    other = pack(20, {n: t + 1 for n, t in learner.adapter().items()}, 16, 32.0, torch.float32)
    with pytest.raises(SyncError, match="version 20"):
        asyncio.run(pool.apply(replace(weights, digest=other.digest)))
    asyncio.run(pool.apply(replace(weights, version=21)))
    assert pool.version == 21


def test_behaviour_logprobs_are_those_of_the_distribution_sampled_from(
    rollout: tuple[Any, RolloutPool], learner: LearnerEngine, prompt: Prompt, model_path: str
) -> None:
    """At another temperature they equal those of the learner's logits divided by it, not the learner's own."""
    _, pool = rollout
    asyncio.run(pool.apply(weights_of(learner, 30)))
    model, tensors = load_policy(model_path, CONFIG), learner.adapter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(tensors[name.replace(".default.", ".")])
    for temperature in (0.3, 1.9):
        completions = asyncio.run(pool.generate(ask(prompt, 5, SamplingParams(temperature=temperature))))
        off = 0.0
        for c in completions:
            ids = torch.tensor(np.concatenate([prompt.token_ids, c.token_ids]))[None].long()
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(prompt.token_ids) - 1 : -1]
            wanted = (logits / temperature).log_softmax(-1).gather(-1, ids[0, len(prompt.token_ids) :, None])[:, 0]
            off = max(off, float(np.abs(c.logprobs - wanted.numpy()).max()))
        assert off < 1e-4
        assert logp_difference(learner, prompt, completions) > 100 * off


@pytest.mark.faults
def test_a_version_applied_while_requests_are_in_flight(
    rollout: tuple[Any, RolloutPool], learner: LearnerEngine, prompt: Prompt, model_path: str, request: Any
) -> None:
    """An adapter does not change them; a merged version draws their later tokens, given the earlier ones."""
    actor, pool = rollout
    merged = request.node.callspec.params["rollout"] == "merged"
    old = learner.adapter()
    noise = torch.Generator().manual_seed(0)
    new = {name: t + 0.02 * torch.randn(t.shape, generator=noise) for name, t in old.items()}

    def expected(tensors: dict[str, torch.Tensor], completions: tuple[Completion, ...]) -> list[Any]:
        model = load_policy(model_path, CONFIG)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(tensors[name.replace(".default.", ".")])
        samples = [as_sample(prompt, c, 0.0) for c in completions]
        with torch.no_grad():
            flat = Policy(model).eval()(pad(samples, torch.device("cpu")))[0]
        return [part.numpy() for part in flat.split([len(c.token_ids) for c in completions])]

    async def overtake(version: int, tokens: int) -> tuple[Completion, ...]:
        """Stop the engine when an unfinished completion has so many tokens, and resume it when a version is sent."""
        await pool.apply(pack(version, old, 16, 32.0, torch.float32))
        (engine,) = engines()
        endless = replace(ask(prompt, seed=version), n=16, max_new_tokens=ENDLESS)
        request = asyncio.create_task(pool.generate(endless))
        while not any(length >= tokens for length in await actor.drawn.remote()):
            assert not request.done()
        engine.suspend()
        applied = asyncio.create_task(pool.apply(pack(version + 1, new, 16, 32.0, torch.float32)))
        await actor.drawn.remote()  # after its reply, the actor has the call of `apply`, too
        engine.resume()
        await applied
        return await request

    switched = 0
    for number, tokens in enumerate((1, 2, 8)):
        completions = asyncio.run(overtake(100 + 2 * number, tokens))
        assert {c.weight_version for c in completions} == {100 + 2 * number}
        for c, before, after in zip(completions, expected(old, completions), expected(new, completions), strict=True):
            by_old, by_new = np.abs(c.logprobs - before) < 1e-4, np.abs(c.logprobs - after) < 1e-4
            if not merged:
                assert by_old.all()
                continue
            places = [t for t in range(len(c.token_ids) + 1) if by_old[:t].all() and by_new[t:].all()]
            assert places, "some token was drawn by neither version, or by the old one after the new"
            switched += places[0] > 0 and places[-1] < len(c.token_ids)
    assert not merged or switched
    ended = asyncio.run(pool.generate(ask(prompt, seed=1)))
    np.testing.assert_allclose(ended[0].logprobs, expected(new, ended)[0], atol=1e-4)


@pytest.mark.faults
def test_a_cancelled_request_is_aborted_in_the_engine(rollout: tuple[Any, RolloutPool], prompt: Prompt) -> None:
    """The engine is stopped, so that the request cannot end by itself."""
    actor, pool = rollout

    async def scenario() -> None:
        (engine,) = engines()
        engine.suspend()
        try:
            request = asyncio.create_task(pool.generate(replace(ask(prompt, seed=1), n=64, max_new_tokens=ENDLESS)))
            while len(await actor.drawn.remote()) < 64:
                assert not request.done()
            request.cancel()
            while await actor.drawn.remote():
                await asyncio.sleep(0.001)
        finally:
            engine.resume()

    asyncio.run(scenario())
    assert len(asyncio.run(pool.generate(ask(prompt, seed=1)))) == 4  # and the engine continues with others


def test_the_same_request_draws_the_same_completions(rollout: tuple[Any, RolloutPool], prompt: Prompt) -> None:
    _, pool = rollout
    hot = SamplingParams(temperature=2.0)
    one, two, other = (asyncio.run(pool.generate(ask(prompt, seed, hot))) for seed in (7, 7, 8))
    assert [c.text for c in one] == [c.text for c in two]
    assert [c.text for c in one] != [c.text for c in other]


def test_the_written_adapter_loads_with_peft(model_path: str, learner: LearnerEngine, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tensors = learner.adapter()
    save_adapter(str(tmp_path), learner, tensors, card="", template=None)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path))
    loaded = {n.replace(".default.", "."): p for n, p in model.named_parameters() if "lora_" in n}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name].detach(), tensor, rtol=0, atol=0)


def test_the_written_adapter_loads_with_vllm(
    model_path: str, learner: LearnerEngine, prompt: Prompt, tmp_path: Path
) -> None:
    """Load it from its files, as users do, and not through a sync."""
    from vllm.lora.request import LoRARequest

    save_adapter(str(tmp_path), learner, learner.adapter(), card="", template=None)
    config = Config.model_validate(
        CONFIG.model_dump() | {"rollout": CONFIG.rollout.model_dump() | {"lora_mode": "adapter"}}
    )
    with asyncio.Runner() as loop:
        engine = loop.run(RolloutEngine.start(model_path, 256, config))
        engine._lora = LoRARequest("from-disk", 1, str(tmp_path))
        completions = loop.run(engine.generate(ask(prompt, seed=1)))
        loop.run(engine.stop())
    assert logp_difference(learner, prompt, completions) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["adapter", "merged"])
def test_an_engine_with_tensor_parallelism_serves_the_whole_adapter(
    cluster: None, model_path: str, learner: LearnerEngine, prompt: Prompt, sync: str
) -> None:
    """Each worker has a shard of every layer; the digest is that of the whole tensors.

    The actor is in a placement group, as in a run, and its workers are not: the group has room for one.
    """
    overrides = {"lora_mode": sync, "tensor_parallel_size": 2}
    config = Config.model_validate(CONFIG.model_dump() | {"rollout": CONFIG.rollout.model_dump() | overrides})
    noise = torch.Generator().manual_seed(0)
    tensors = {name: t + 0.02 * torch.randn(t.shape, generator=noise) for name, t in learner.adapter().items()}
    model = load_policy(model_path, CONFIG)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(tensors[name.replace(".default.", ".")])
    group = placement_group([{"CPU": 1}])
    try:
        actor = ray.remote(RolloutActor).options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
        try:
            ray.get(actor.start.remote(ModelFiles(model_path), 256, config))
            pool = RolloutPool([actor], LIMITS)
            asyncio.run(pool.apply(pack(1, tensors, 16, 32.0, torch.float32)))
            completions = asyncio.run(pool.generate(ask(prompt, seed=1)))
            ray.get(actor.stop.remote())
        finally:
            ray.kill(actor)
    finally:
        remove_placement_group(group)
    with torch.no_grad():
        samples = [as_sample(prompt, c, 0.0) for c in completions]
        expected = Policy(model).eval()(pad(samples, torch.device("cpu")))[0]
    np.testing.assert_allclose(np.concatenate([c.logprobs for c in completions]), expected.numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rollout", ["merged"], indirect=True)
def test_the_correction_is_unbiased_for_an_aggressive_rung(rollout: tuple[Any, RolloutPool], model_path: str) -> None:
    """Drawn at T=1.3 and top_p=0.97, weighted completions give the plain mean weight, success rate and gradient.

    Over whole sequences and without a cap, E[w f(completion)] over the rung's distribution is E[f] over the policy's
    own, apart from tokens that top_p never draws. The gradient is taken along one direction, that of the plain gradient
    of other draws, so that each completion has its own share of it and the sampling error is known.
    """
    _, pool = rollout
    fresh = load_policy(model_path, CONFIG)  # the untouched base: an adapter that changes nothing yet
    tensors = {n.replace(".default.", "."): p.detach() for n, p in fresh.named_parameters() if p.requires_grad}
    asyncio.run(pool.apply(pack(40, tensors, 16, 32.0, torch.float32)))
    prompts = load_prompts(CONFIG, load_tokenizer(model_path, CONFIG.model, CONFIG.data)).train
    policy = Policy(fresh).eval()
    parameters = [p for p in policy.parameters() if p.requires_grad]

    async def draw(sampling: SamplingParams, seed: int) -> list[tuple[Prompt, Completion]]:
        requests = [GenerationRequest(p.id, p.token_ids, 32, sampling, 96, seed + i) for i, p in enumerate(prompts)]
        groups = await asyncio.gather(*(pool.generate(request) for request in requests))
        return [(p, c) for p, group in zip(prompts, groups, strict=True) for c in group]

    def parts(drawn: list[tuple[Prompt, Completion]]) -> list[list[tuple[Prompt, Completion]]]:
        return [drawn[i : i + 64] for i in range(0, len(drawn), 64)]

    def tokens_of(drawn: list[tuple[Prompt, Completion]], of: int | None = None) -> Tokens:
        """The inputs of the loss, with the success as the advantage and the mean over `of` completions as weights."""
        logprobs = torch.cat(
            [policy(pad([as_sample(p, c, 0.0) for p, c in part], torch.device("cpu")))[0] for part in parts(drawn)]
        )
        lengths = torch.tensor([len(c.token_ids) for _, c in drawn])
        success = torch.tensor([f"FLAG{p.answer}SOLUTION" in c.text for p, c in drawn], dtype=torch.float32)
        return Tokens(
            policy=logprobs,
            old=logprobs.detach(),
            behaviour=torch.from_numpy(np.concatenate([c.logprobs for _, c in drawn])),
            reference=None,
            advantages=success.repeat_interleave(lengths),
            weights=torch.full((int(lengths.sum()),), 1 / (of or len(drawn))),
            sequence=torch.arange(len(drawn)).repeat_interleave(lengths),
        )

    def by_completion(tokens: Tokens, values: torch.Tensor, *, mean: bool = False) -> Any:
        sums = torch.zeros(int(tokens.sequence[-1]) + 1).index_add(0, tokens.sequence, values)
        return (sums / torch.bincount(tokens.sequence) if mean else sums).detach().numpy().astype(np.float64)

    settings = LossSettings(correction="sequence", correction_cap=1e9, epsilon=0.2)

    def gradient(drawn: list[tuple[Prompt, Completion]], settings: LossSettings) -> list[torch.Tensor]:
        """The gradient of the loss over all completions, part by part, since the whole graph takes 10 GB."""
        losses = (-policy_loss(tokens_of(part, of=len(drawn)), settings)[0] for part in parts(drawn))
        of_parts = [torch.autograd.grad(loss, parameters) for loss in losses]
        return [torch.stack(each).sum(0) for each in zip(*of_parts, strict=True)]

    direction = gradient(asyncio.run(draw(SamplingParams(), 900)), LossSettings(correction="none"))
    scale = torch.stack([d.norm() for d in direction]).norm()

    def shares(drawn: list[tuple[Prompt, Completion]]) -> Any:
        """Derivative of each completion's log-probability along the direction, by a central difference."""
        moved = []
        with torch.no_grad():
            for step in (1e-2, -2e-2, 1e-2):  # there, to the other side, and back
                for parameter, d in zip(parameters, direction, strict=True):
                    parameter.add_(step * d / scale)
                tokens = tokens_of(drawn)
                moved.append(by_completion(tokens, tokens.policy))
        return (moved[0] - moved[1]) / 2e-2

    plain, hot = (asyncio.run(draw(s, seed)) for s, seed in ((SamplingParams(), 100), (HOT, 200)))
    with torch.no_grad():
        of_plain, of_hot = tokens_of(plain), tokens_of(hot)
    weights = by_completion(
        of_hot, rollout_correction(of_hot.old, of_hot.behaviour, of_hot.sequence, settings).weights, mean=True
    )
    right_plain, right_hot = (by_completion(t, t.advantages, mean=True) for t in (of_plain, of_hot))
    plain_gradient, hot_gradient = right_plain * shares(plain), right_hot * shares(hot)

    def error(values: Any) -> float:
        return float(values.std(ddof=1) / np.sqrt(len(values)))

    assert weights.mean() == pytest.approx(1.0, abs=4 * error(weights) + 0.02)
    assert weights.std() > 0.1, "the rung must differ from the policy, or this test shows nothing"
    for own, drawn in ((right_plain, right_hot), (plain_gradient, hot_gradient)):
        weighted = weights * drawn
        assert weighted.mean() == pytest.approx(own.mean(), abs=4 * np.hypot(error(weighted), error(own)))
        assert own.mean() > 4 * error(own), "it must stand out from the sampling error, or this test shows nothing"
    # The loss itself, and not only its weights, has that gradient.
    along = sum(float((g * d).sum()) for g, d in zip(gradient(hot, settings), direction, strict=True)) / float(scale)
    assert along == pytest.approx((weights * hot_gradient).mean(), rel=0.02)
