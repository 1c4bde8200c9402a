"""Phase-dependent sampling for vLLM's second model runner, which runs on GPUs (`rollout/phases.py` has the first).

Its interface gives the slots of requests and the tokens on the device. The program on the host is one or two steps
ahead of them, so nothing here reads a result of the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from adagrpo_ray.rollout.marker import Automata
from adagrpo_ray.rollout.phase_request import check_params, phases_of
from adagrpo_ray.rollout.phase_slots import PhaseSlots

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState


class DevicePhaseProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM has no types here
    """Samples requests that have `extra_args["phases"]` with the parameters of their current phase."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        """Raises ValueError with speculative decoding, whose draft tokens have rows of their own."""
        if vllm_config.speculative_config is not None:
            raise ValueError("speculative_config: phases need one row for each request; leave speculation out")
        self._requests = req_states
        automata = Automata(lambda: _tokenizer(vllm_config))
        self._slots = PhaseSlots(req_states.max_num_reqs, req_states.vocab_size, automata, self._to_device)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError if a request has phases that are not valid, or phases and other sampling parameters."""
        check_params(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Put a request into its slot; returns whether it has phases."""
        return self._slots.stage(req_idx, phases_of(sampling_params))

    def apply_staged_writes(self) -> None:
        """Write the new requests to the device."""
        requests = self._requests
        self._slots.write(requests.all_token_ids.gpu, requests.prompt_len.np, requests.prefill_len.np)

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Change the logits [batch, V] of rows with phases."""
        slots = ctx.idx_mapping_np
        rows = np.flatnonzero(self._slots.active[slots])
        if not len(rows):
            return logits
        index = self._to_device(rows)
        at, positions = ctx.expanded_idx_mapping[index].long(), ctx.pos[index]
        fresh = positions >= self._requests.prefill_len.gpu[at]
        self._slots.advance(at, ctx.input_ids[index].long(), fresh)
        changed = self._slots.tensors(at, slots[rows]).apply(logits[index])
        return logits.index_copy_(0, index, changed)

    def _to_device(self, array: NDArray[np.generic]) -> torch.Tensor:
        """Copy without waiting: from pinned memory, which torch keeps until the copy has been made."""
        from vllm.utils.torch_utils import async_tensor_h2d

        copied: torch.Tensor = async_tensor_h2d(array, device=self._requests.device)
        return copied


def _tokenizer(vllm_config: VllmConfig) -> object:
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(vllm_config.model_config)
