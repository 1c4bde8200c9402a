"""Log-probabilities of models that scale or cap their logits, and the check that they are the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.config import Config
from adagrpo_ray.config.learner import Packing
from adagrpo_ray.errors import ModelError
from adagrpo_ray.learner import agreement
from adagrpo_ray.learner.agreement import check_agreement
from adagrpo_ray.learner.head import base_of
from adagrpo_ray.learner.layout import Rows, pad, share
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.model import shared_attention
from adagrpo_ray.model.shared_attention import (
    TOGETHER,
    SharedPrompt,
    Together,
    parts_of_row,
    share_prompts,
    shared_prompt,
    together,
)

CPU = torch.device("cpu")
VOCABULARY = 128
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**SMALL, "head_dim": 8}
CHANGING = {
    "CohereConfig": {**SMALL, "logit_scale": 0.1},
    "Cohere2Config": {**SMALL, "logit_scale": 0.1},
    "Gemma2Config": {**GEMMA, "final_logit_softcapping": 2.0},
    "GraniteConfig": {**SMALL, "logits_scaling": 4.0},
    "GraniteMoeConfig": {**SMALL, "logits_scaling": 4.0, "num_local_experts": 2, "num_experts_per_tok": 1},
    "NanoChatConfig": {**SMALL, "final_logit_softcapping": 2.0},
    "VaultGemmaConfig": {**GEMMA, "final_logit_softcapping": 2.0},
    "FalconH1Config": {
        **{**SMALL, "head_dim": 8, "lm_head_multiplier": 0.2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
        **{"mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16},
    },
}
PLAIN = {
    "LlamaConfig": SMALL,
    "Qwen3Config": {**SMALL, "head_dim": 8},
    "Qwen3MoeConfig": {**SMALL, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "MixtralConfig": {**SMALL, "num_local_experts": 2, "output_router_logits": True},
    "Olmo2Config": SMALL,
    "MistralConfig": SMALL,
    "OPTConfig": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "Gemma3TextConfig": GEMMA,
}
KINDS = {**CHANGING, **PLAIN}


def nested() -> Any:
    """Gemma 4 with its vision tower: the settings of the text model, with the cap, are one level down."""
    from transformers import Gemma4Config

    text = {"final_logit_softcapping": 2.0, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma4Config(
        text_config={**GEMMA, **text, "hidden_size_per_layer_input": 8}, vision_config={**vision, "head_dim": 8}
    )


def policy_of(kind: str, **settings: Any) -> Policy:
    """A model of random weights, large enough for logits of several nats, with an adapter that has an effect."""
    import transformers
    from peft import LoraConfig, get_peft_model

    config = nested() if kind == "nested" else getattr(transformers, kind)(**KINDS[kind], **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    targets = r".*language_model.*\.q_proj" if kind == "nested" else ["q_proj"]
    policy = Policy(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return policy.eval()


def settings(packing: Packing = "padded") -> Config:
    return Config.load(None, ["model.path=here", "model.dtype=float32", f"learner.packing={packing}"])


def check(policy: Policy, packing: Packing) -> None:
    model = policy.peft_model.get_base_model()
    check_agreement(model, lambda rows: policy(rows)[0], packing, settings(packing))


@pytest.mark.parametrize("kind", [*KINDS, "nested"])
def test_logprobs_are_those_of_the_models_own_logits(kind: str) -> None:
    """They are equal, and the gradient of the adapter is that of the model's own logits."""
    policy = policy_of(kind)
    samples = agreement._samples(VOCABULARY)
    model = policy.peft_model.get_base_model()
    check(policy, "padded")
    ours = policy(pad(samples, CPU))[0]
    with torch.enable_grad():
        own = torch.cat([agreement._own(model, sample, CPU) for sample in samples])
    torch.testing.assert_close(ours, own, rtol=0, atol=2e-5)
    trained = [p for p in policy.parameters() if p.requires_grad]
    got, expected = (torch.autograd.grad(logprobs.sum(), trained) for logprobs in (ours, own))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-2


@pytest.mark.parametrize("together", [0, 30, TOGETHER, 1000])
@pytest.mark.parametrize("kind", [*KINDS, "nested"])
def test_prompts_are_shared_exactly_or_the_model_is_refused(
    kind: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_attention, "TOGETHER", together)
    policy = policy_of(kind)
    model = policy.peft_model.get_base_model()
    samples = agreement._samples(VOCABULARY)
    own = torch.cat([agreement._own(model, sample, CPU) for sample in samples])
    if kind == "FalconH1Config":  # whose layers have a state
        assert not share_prompts(model)
    elif not share_prompts(model):
        pytest.fail("it shares none")
    elif kind in ("Gemma2Config", "VaultGemmaConfig"):
        with pytest.raises(
            ModelError, match=r"attention with softcap does not share prompts\); set learner\.packing=padded"
        ):
            check(policy, "shared")
    else:
        check(policy, "shared")
        torch.testing.assert_close(policy(share(samples, CPU))[0], own, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [kind for kind in [*KINDS, "nested"] if kind != "FalconH1Config"])
def test_samples_of_a_packed_row_are_separated_or_the_model_is_refused(kind: str) -> None:
    """By the mask that Transformers makes; the bounds of the samples, for flash kernels, disturb no model."""
    policy = policy_of(kind)
    if kind == "OPTConfig":  # which makes its mask without looking at positions
        with pytest.raises(ModelError, match=r"differ from .*; set learner\.packing=padded"):
            check(policy, "packed")
    else:
        check(policy, "packed")


@given(st.integers(1, 300), st.lists(st.integers(0, 300), min_size=1, max_size=20))
def test_a_prompt_is_copied_for_few_tokens(prompt: int, lengths: list[int]) -> None:
    """The tokens of each completion are in one block, in their order, and copies stay within the documented bound."""
    lengths.sort(reverse=True)
    group = shared_prompt(prompt, lengths, CPU)
    tokens = torch.cat([blocks.tokens.flatten()[blocks.kept] for blocks in group.completions])
    assert tokens.tolist() == list(range(prompt, prompt + sum(lengths)))
    assert sum(prompt * len(blocks.tokens) for blocks in group.completions) <= prompt + 6 * max(1, sum(lengths))


def test_short_groups_are_computed_together_and_long_ones_alone() -> None:
    long, half = (TOGETHER, [1]), (TOGETHER // 4, [TOGETHER // 8] * 2)
    parts = parts_of_row([half, half, half, long, long, (1, [0])], CPU)
    assert [type(part) for part in parts] == [Together, Together, SharedPrompt, SharedPrompt, Together]
    assert [part.tokens for part in parts] == [TOGETHER, TOGETHER // 2, TOGETHER + 1, TOGETHER + 1, 1]


def test_mask_of_short_groups_matches_one_by_hand() -> None:
    part = together([(2, [2, 1]), (1, [1])], CPU)
    assert part.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert ["".join("x" if seen else "." for seen in row) for row in part.mask.tolist()] == [
        "x......",
        "xx.....",
        "xxx....",  # the first completion
        "xxxx...",
        "xx..x..",  # the second one
        ".....x.",  # the second prompt
        ".....xx",
    ]


@pytest.mark.parametrize("together", [0, TOGETHER])
@pytest.mark.parametrize("window", [1, 2, 5, 12, 40])
def test_a_sliding_window_equals_that_of_the_model(window: int, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_attention, "TOGETHER", together)
    policy = policy_of("MistralConfig", sliding_window=window)
    samples = agreement._samples(VOCABULARY)
    model = policy.peft_model.get_base_model()
    own = torch.cat([agreement._own(model, sample, CPU) for sample in samples])
    assert share_prompts(model)
    torch.testing.assert_close(policy(share(samples, CPU))[0], own, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [*CHANGING, "nested"])
def test_the_head_alone_would_give_other_logprobs(kind: str) -> None:
    """Without this, the tests above would show nothing."""
    policy = policy_of(kind)
    rows = pad(agreement._samples(VOCABULARY), CPU)
    model = policy.peft_model.get_base_model()
    with torch.no_grad():
        hidden = model.base_model(**rows.inputs).last_hidden_state.flatten(0, 1)[rows.predicting]
        logits = model.get_output_embeddings()(hidden)
        bare = logits.log_softmax(-1).gather(-1, rows.targets[:, None]).squeeze(-1)
        assert float((bare - policy(rows)[0]).abs().mean()) > 10 * agreement.BOUNDS["float32"]


def test_a_model_without_a_part_for_hidden_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("LlamaConfig")
    monkeypatch.setattr("transformers.LlamaForCausalLM.base_model_prefix", "body")
    check(policy, "padded")  # it is found without the prefix
    policy.peft_model.get_base_model().add_module("body", policy.peft_model.get_base_model()._modules.pop("model"))
    monkeypatch.setattr("transformers.LlamaForCausalLM.base_model_prefix", "")
    monkeypatch.setattr("transformers.LlamaForCausalLM.get_decoder", lambda self: self)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no part that computes hidden states without the head"):
        base_of(policy.peft_model.get_base_model())


def test_logprobs_that_are_not_the_models_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("LlamaConfig")
    bare = policy.forward
    monkeypatch.setattr(policy, "forward", lambda rows: (0.9 * bare(rows)[0], None))
    message = (
        r"model\.path='here' \(llama\): the learner's log-probabilities differ from .* by [\d.]+ nats .*use another"
    )
    with pytest.raises(ModelError, match=message):
        check(policy, "padded")
    monkeypatch.setattr(policy, "forward", lambda rows: (torch.nan * bare(rows)[0], None))
    with pytest.raises(ModelError, match=r"by nan nats on average"):
        check(policy, "padded")


def test_a_packing_whose_samples_see_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of a model that does not separate samples by their positions."""
    policy = policy_of("LlamaConfig")
    check(policy, "packed")
    bare = policy.forward

    def mixed(rows: Rows) -> Any:
        return bare(Rows({"input_ids": rows.inputs["input_ids"]}, rows.predicting, rows.targets))

    monkeypatch.setattr(policy, "forward", mixed)
    with pytest.raises(ModelError, match=r"differ from .*; set learner\.packing=padded"):
        check(policy, "packed")


def test_weights_that_are_not_finite_are_refused() -> None:
    policy = policy_of("LlamaConfig")
    with torch.no_grad():
        policy.peft_model.get_base_model().lm_head.weight[3] = torch.nan
    with pytest.raises(ModelError, match=r"\(llama\) computes logits that are not finite with model\.dtype=float32"):
        check(policy, "padded")


def test_a_model_that_needs_more_than_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("LlamaConfig")

    def asking(*_: Any, **__: Any) -> Any:
        raise ValueError("give pixel_values")

    monkeypatch.setattr("transformers.LlamaModel.forward", asking)
    with pytest.raises(ModelError, match=r"cannot compute log-probabilities with it \(give pixel_values\)"):
        check(policy, "padded")


def test_the_learner_checks_before_it_trains(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adagrpo_ray.learner.engine import LearnerEngine

    def scaled(self: Any, *arguments: Any, **named: Any) -> Any:
        output = forward(self, *arguments, **named)
        output.logits = output.logits * self.scale
        return output

    monkeypatch.setattr("transformers.Qwen3ForCausalLM.scale", 2.0, raising=False)
    import transformers

    forward = transformers.Qwen3ForCausalLM.forward
    monkeypatch.setattr("transformers.Qwen3ForCausalLM.forward", scaled)
    config = Config.load("launch/configs/tiny-cpu.yaml")
    engine = LearnerEngine(str(tiny_model), config, 0, 1, ("127.0.0.1", 29547))
    assert not engine._policy.training
    monkeypatch.setattr("adagrpo_ray.learner.policy.own_head", lambda model, output: model.get_output_embeddings())
    with pytest.raises(ModelError, match=r"model\.path='tiny' \(qwen3\): the learner's log-probabilities differ"):
        LearnerEngine(str(tiny_model), config, 0, 1, ("127.0.0.1", 29547))
