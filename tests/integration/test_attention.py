"""Attention in each packing: no masks if a flash kernel would run, and the same numbers from every kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.learner import agreement
from adagrpo_ray.learner.dropout import UpdateMode
from adagrpo_ray.learner.head import base_of
from adagrpo_ray.learner.layout import Rows, join, pad, share
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.model.attention import FLASH, FLEX, SDPA, use_packing
from adagrpo_ray.model.own_attention import attention_of
from adagrpo_ray.model.packed_attention import NAME as VARLEN
from adagrpo_ray.model.packed_attention import kernel_runs, use_varlen
from adagrpo_ray.model.shared_attention import NAME as SHARED
from adagrpo_ray.model.shared_attention import TOGETHER, share_prompts
from adagrpo_ray.model.wide_attention import NAME as WIDE
from adagrpo_ray.model.wide_attention import use_wide
from tests.support.batches import make_samples
from tests.support.random_policies import SMALL, checkpoint_activations, random_policy

CPU = torch.device("cpu")
SAMPLES = make_samples(7)
LAYERS = SMALL["num_hidden_layers"]
ALTERNATING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {
    "Qwen3Config": SMALL,
    "LlamaConfig": SMALL,
    "MistralConfig": {**SMALL, "sliding_window": 5},
    "Gemma3TextConfig": {**SMALL, **ALTERNATING},
}
"""Models without a window, with one in all layers, and with one in every second layer."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of SDPA; `grouped`: torch groups the heads of queries by those of keys and values."""

    masked: bool
    causal: bool
    heads: int
    kv_heads: int
    grouped: bool


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls of SDPA, in their order."""
    found: list[Call] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Any, key: Any, value: Any, attn_mask: Any = None, is_causal: bool = False, **options: Any) -> Any:
        grouped = options.get("enable_gqa", False)
        found.append(Call(attn_mask is not None, is_causal, query.shape[1], key.shape[1], grouped))
        return kernel(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    monkeypatch.setattr("adagrpo_ray.model.shared_attention.scaled_dot_product_attention", spy)
    return found


@dataclass
class PlainKernel:
    """torch's `varlen_attn` by its documentation, in plain torch. It checks arguments as CUDA would."""

    windows: list[tuple[int, int]] = field(default_factory=list)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
    ) -> torch.Tensor:
        self.windows.append(window_size)
        bounds = cu_seq_q.tolist()
        assert cu_seq_q.dtype == torch.int32
        assert torch.equal(cu_seq_q, cu_seq_k)
        assert (bounds[0], bounds[-1]) == (0, len(query))
        assert (type(max_q), max_q, max_k) == (int, *[max(end - start for start, end in pairwise(bounds))] * 2)
        assert all(tensor.dim() == 3 and tensor.stride(-1) == 1 for tensor in (query, key, value))
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert window_size[1] == 0  # causal
        repeats, left = query.shape[1] // key.shape[1], window_size[0]
        parts = []
        for start, end in pairwise(bounds):
            q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
            k, v = (tensor.repeat_interleave(repeats, 0) for tensor in (k, v))
            places = torch.arange(end - start)
            before = places[:, None] - places
            hidden = (before < 0) | (before > left if left >= 0 else before < 0)
            scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
            parts.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(parts)


@pytest.fixture
def plain_kernel(monkeypatch: pytest.MonkeyPatch) -> PlainKernel:
    """The kernel in plain torch in place of torch's, which runs on CUDA only."""
    kernel = PlainKernel()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    return kernel


def own(policy: Policy) -> torch.Tensor:
    """Log-probabilities of all completions, each sequence alone, from the model's own logits."""
    model = policy.peft_model.get_base_model()
    return torch.cat([agreement._own(model, sample, CPU) for sample in SAMPLES])


def gradients(policy: Policy, logprobs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(logprobs.sum(), [p for p in policy.parameters() if p.requires_grad])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_padded_rows_have_no_mask(calls: list[Call], checkpointing: bool) -> None:
    """So torch can use its flash kernel, and gets keys and values of only as many heads as there are."""
    policy = random_policy("Qwen3Config", SMALL)
    if checkpointing:
        checkpoint_activations(policy)
    UpdateMode(policy).begin()
    gradients(policy, policy(pad(SAMPLES, CPU))[0])
    call = Call(masked=False, causal=True, heads=4, kv_heads=2, grouped=True)
    assert calls == [call] * (LAYERS * (1 + checkpointing))


@pytest.mark.parametrize("lay_out", [pad, join])
def test_wide_attention_repeats_keys_and_values_and_changes_no_number(
    calls: list[Call], lay_out: Callable[..., Rows]
) -> None:
    """So that no call needs grouped queries, which CUDA does not have in float32 outside of the math kernel."""
    policy = random_policy("Qwen3Config", SMALL)
    rows = lay_out(SAMPLES, CPU)
    expected = policy(rows)[0]
    wanted = gradients(policy, expected)
    assert use_wide(policy.peft_model.get_base_model())
    calls.clear()
    got = policy(rows)[0]
    masked = lay_out is join
    assert calls == [Call(masked, causal=not masked, heads=4, kv_heads=4, grouped=False)] * LAYERS
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(gradients(policy, got), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_wide_attention_has_the_windows_of_the_model(kind: str) -> None:
    policy = random_policy(kind, KINDS[kind])
    with torch.no_grad():
        expected = own(policy)
        assert use_wide(policy.peft_model.get_base_model())
        torch.testing.assert_close(policy(pad(SAMPLES, CPU))[0], expected, rtol=0, atol=2e-5)


def test_only_completions_of_long_shared_prompts_have_masks(calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo_ray.model.shared_attention.TOGETHER", 0)
    policy = random_policy("Qwen3Config", SMALL)
    assert share_prompts(policy.peft_model.get_base_model())
    rows = share(SAMPLES, CPU)
    policy(rows)
    prompts = [call for call in calls if not call.masked]
    assert len(prompts) == LAYERS * len(rows.inputs["shared"])
    assert all(call.causal for call in prompts)
    assert not any(call.causal for call in calls if call.masked)


def test_short_groups_of_shared_prompts_are_one_call(calls: list[Call]) -> None:
    policy = random_policy("Qwen3Config", SMALL)
    assert share_prompts(policy.peft_model.get_base_model())
    rows = share(SAMPLES[:3], CPU)
    assert rows.inputs["input_ids"].numel() <= TOGETHER
    policy(rows)
    assert calls == [Call(masked=True, causal=False, heads=4, kv_heads=4, grouped=False)] * LAYERS


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_packed_by_torchs_kernel_have_no_mask(
    calls: list[Call], plain_kernel: PlainKernel, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    policy = random_policy("Qwen3Config", SMALL)
    assert use_varlen(policy.peft_model.get_base_model())
    if checkpointing:
        checkpoint_activations(policy)
    UpdateMode(policy).begin()
    plain_kernel.windows.clear()  # without the one that tried the kernel
    gradients(policy, policy(join(SAMPLES, CPU))[0])
    assert plain_kernel.windows == [(-1, 0)] * (LAYERS * (1 + checkpointing))
    assert calls == []


def test_padding_changes_no_bit() -> None:
    policy, rows = random_policy("Qwen3Config", SMALL), pad(SAMPLES, CPU)
    ids = rows.inputs["input_ids"]
    lengths = torch.tensor([len(s.prompt_token_ids) + len(s.token_ids) for s in SAMPLES])
    padding = torch.arange(ids.shape[1]) >= lengths[:, None]
    assert padding.sum() > 20
    other = Rows({"input_ids": torch.where(padding, 77, ids)}, rows.predicting, rows.targets)
    one, two = (policy(each)[0] for each in (rows, other))
    assert torch.equal(one, two)
    assert all(map(torch.equal, gradients(policy, one), gradients(policy, two)))


def test_a_mask_would_change_no_bit() -> None:
    """With the same kernel, since others round differently."""
    policy, rows = random_policy("Qwen3Config", SMALL), pad(SAMPLES, CPU)
    ids = rows.inputs["input_ids"]
    lengths = torch.tensor([len(s.prompt_token_ids) + len(s.token_ids) for s in SAMPLES])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    decoder = base_of(policy.peft_model.get_base_model())[1]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        without, masked = (decoder(input_ids=ids, attention_mask=m, use_cache=False)[0] for m in (None, mask))
    assert torch.equal(without[mask.bool()], masked[mask.bool()])
    assert not torch.equal(without, masked)  # at the padding, which nothing reads


@pytest.mark.parametrize("kind", KINDS)
def test_rows_packed_by_torchs_kernel_equal_sequences_alone(plain_kernel: PlainKernel, kind: str) -> None:
    policy = random_policy(kind, KINDS[kind])
    expected = own(policy)
    wanted = gradients(policy, expected)
    assert use_varlen(policy.peft_model.get_base_model())
    plain_kernel.windows.clear()
    got = policy(join(SAMPLES, CPU))[0]
    windows = {"MistralConfig": [(4, 0)] * 2, "Gemma3TextConfig": [(4, 0), (-1, 0)]}
    assert plain_kernel.windows == windows.get(kind, [(-1, 0)] * 2)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(gradients(policy, got), wanted, rtol=1e-3, atol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in wanted) > 1e-2
    torch.testing.assert_close(own(policy), expected, rtol=0, atol=2e-5)  # a row without bounds is one sample


@pytest.mark.parametrize("kind", KINDS)
def test_rows_packed_by_flex_attention_equal_sequences_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its compiler and without gradients, which FlexAttention does not have on CPUs."""
    from torch.nn.attention import flex_attention as flex

    create = flex.create_block_mask

    def interpreted(query: Any, key: Any, value: Any, training: bool = False, **options: Any) -> Any:
        return flex.flex_attention(query, key, value, **options)

    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(
        "transformers.masking_utils.create_block_mask", lambda *args, _compile, **named: create(*args, **named)
    )
    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", interpreted)
    policy = random_policy(kind, KINDS[kind])
    with torch.no_grad():
        expected = own(policy)
        policy.peft_model.get_base_model().set_attn_implementation(FLEX)
        torch.testing.assert_close(policy(join(SAMPLES, CPU))[0], expected, rtol=0, atol=2e-5)


def test_a_packed_row_by_sdpa_has_a_mask_and_ignores_the_bounds(calls: list[Call]) -> None:
    policy = random_policy("Qwen3Config", SMALL)
    expected = own(policy)
    calls.clear()
    torch.testing.assert_close(policy(join(SAMPLES, CPU))[0], expected, rtol=0, atol=2e-5)
    assert [call.masked for call in calls] == [True] * LAYERS


def test_options_that_torchs_kernel_lacks_are_refused(plain_kernel: PlainKernel) -> None:
    policy = random_policy("Gemma2Config", SMALL)
    assert use_varlen(policy.peft_model.get_base_model())
    with pytest.raises(ModelError, match="torch's flash kernel has no attention with softcap"):
        policy(join(SAMPLES, CPU))


def test_a_mask_is_refused_by_torchs_kernel(plain_kernel: PlainKernel) -> None:
    policy = random_policy("Qwen3Config", SMALL)
    model = policy.peft_model.get_base_model()
    assert use_varlen(model)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(ModelError, match="torch's flash kernel has no attention with a mask"):
        model(input_ids=torch.ones(2, 3, dtype=torch.long), attention_mask=mask, use_cache=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_torchs_kernel_does_not_run_without_cuda() -> None:
    assert not kernel_runs(4, 2, 16)


@dataclass(frozen=True)
class Machine:
    """The abilities of a machine."""

    cuda: bool = True
    flash_attn: bool = False
    varlen: bool = True
    triton: bool = True


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    def choose(packing: Any, dtype: str, machine: Machine) -> tuple[str, str]:
        """The attention and the packing that are chosen."""
        import transformers

        settings = Config.load(None, ["model.path=here", f"model.dtype={dtype}"]).model
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.Qwen3Config(**SMALL), attn_implementation="sdpa"
        )
        monkeypatch.setattr("torch.cuda.is_available", lambda: machine.cuda)
        monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: machine.flash_attn)
        monkeypatch.setattr("adagrpo_ray.model.packed_attention.kernel_runs", lambda *_: machine.varlen)
        monkeypatch.setattr("adagrpo_ray.model.kernels.find_spec", lambda _: machine.triton or None)
        # Transformers' own check imports flash-attn, which is not there.
        monkeypatch.setattr(
            "transformers.PreTrainedModel._check_and_adjust_attn_implementation", lambda self, name, **_: name
        )
        chosen = use_packing(model, packing, settings)
        return attention_of(model), chosen

    return choose


@pytest.mark.parametrize(
    ("packing", "dtype", "machine", "attention", "chosen"),
    [
        (None, "bfloat16", Machine(flash_attn=True), FLASH, "packed"),
        (None, "bfloat16", Machine(), VARLEN, "packed"),
        (None, "bfloat16", Machine(varlen=False), SHARED, "shared"),
        (None, "float32", Machine(flash_attn=True), SHARED, "shared"),  # flash kernels are for 16 bits
        (None, "bfloat16", Machine(cuda=False, flash_attn=True), SHARED, "shared"),
        ("packed", "bfloat16", Machine(flash_attn=True), FLASH, "packed"),
        ("packed", "bfloat16", Machine(), VARLEN, "packed"),
        ("packed", "bfloat16", Machine(varlen=False), FLEX, "packed"),
        ("packed", "float32", Machine(), FLEX, "packed"),
        ("packed", "float32", Machine(triton=False), WIDE, "packed"),
        ("packed", "bfloat16", Machine(cuda=False), SDPA, "packed"),
        ("packed", "float32", Machine(cuda=False), SDPA, "packed"),
        ("padded", "bfloat16", Machine(flash_attn=True), SDPA, "padded"),
        ("padded", "float32", Machine(), WIDE, "padded"),
        ("padded", "float32", Machine(cuda=False), SDPA, "padded"),
        ("shared", "bfloat16", Machine(flash_attn=True), SHARED, "shared"),
    ],
)
def test_attention_is_chosen_by_the_abilities_of_the_machine(
    choose: Callable[..., tuple[str, str]], packing: Any, dtype: str, machine: Machine, attention: str, chosen: str
) -> None:
    assert choose(packing, dtype, machine) == (attention, chosen)


def test_flash_attn_that_refuses_the_model_is_replaced_by_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    settings = Config.load(None, ["model.path=here", "model.dtype=bfloat16"]).model
    model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(**SMALL), attn_implementation="sdpa")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr("adagrpo_ray.model.packed_attention.kernel_runs", lambda *_: True)

    def check(self: Any, name: str, **_: Any) -> str:
        if name == FLASH:
            raise ImportError("FlashAttention2 requires compute capability >= 8.0")
        return name

    monkeypatch.setattr("transformers.PreTrainedModel._check_and_adjust_attn_implementation", check)
    assert use_packing(model, None, settings) == "packed"
    assert attention_of(model) == VARLEN


def test_a_model_with_a_state_is_padded_by_default_and_never_packed(
    choose: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.Qwen3ForCausalLM._is_stateful", True)
    assert choose(None, "bfloat16", Machine(flash_attn=True)) == (SDPA, "padded")
    with pytest.raises(ModelError, match=r"layers with a state.*set learner\.packing=padded"):
        choose("packed", "bfloat16", Machine(flash_attn=True))


def test_a_model_with_attention_in_chunks_shares_no_prompts() -> None:
    policy = random_policy("Qwen3Config", SMALL)
    model = policy.peft_model.get_base_model()
    model.config.attention_chunk_size = 8192
    assert not share_prompts(model)
    assert attention_of(model) == SDPA
