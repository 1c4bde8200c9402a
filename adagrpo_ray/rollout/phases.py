"""Phase-dependent sampling on vLLM: one set of sampling parameters for the thought, another for the answer.

A completion is in the thought until a marker has been generated, which is a text such as `</think>` or a sequence of
token ids. From the next token on it is in the answer. This module works with plain vLLM, too:

    from vllm import LLM, SamplingParams
    from adagrpo_ray.rollout.phases import PhaseLogitsProcessor, phase_args

    llm = LLM(model, logits_processors=[PhaseLogitsProcessor], logprobs_mode="processed_logprobs")
    phases = phase_args("</think>", thought={"temperature": 1.2, "min_p": 0.02}, answer={"temperature": 0.0})
    outputs = llm.generate(prompts, SamplingParams(max_tokens=512, logprobs=0, extra_args=phases))

The request's own parameters stay neutral, and the processor applies those of the phase. So vLLM's processed
log-probabilities are those of the distribution that each token was drawn from. Requests without phases are not changed.

vLLM has two model runners, with an interface each. `PhaseLogitsProcessor` here is for the first one, which runs on
CPUs. On GPUs vLLM uses the second one, and the processor is `adagrpo_ray.rollout.device_phases.DevicePhaseProcessor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor.interface import LogitsProcessor, MoveDirectionality

from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.rollout.marker import Automata, MarkerAutomaton
from adagrpo_ray.rollout.phase_request import Phases, check_params, phase_args, phases_of
from adagrpo_ray.rollout.phase_tensors import PhaseTensors

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

__all__ = ["PhaseLogitsProcessor", "phase_args"]


class _Row:
    """A request with phases. `output` is vLLM's own list and grows."""

    def __init__(
        self, phases: Phases, automaton: MarkerAutomaton, prompt: Sequence[int] | None, output: Sequence[int]
    ) -> None:
        self._phases, self._automaton = phases, automaton
        self._prompt, self._output = prompt or (), output
        self._state = self._read = 0

    @property
    def phase(self) -> PhaseParams:
        return self._phases.answer if self._state == self._automaton.last else self._phases.thought

    @property
    def text(self) -> list[int]:
        return [*self._prompt, *self._output]

    def advance(self) -> tuple[Sequence[int], bool]:
        """Read the output ids since the last call; returns them, and whether they ended the thought."""
        new, before = self._output[self._read :], self.phase
        for token in new:
            self._state = self._automaton.step(self._state, token)
        self._read += len(new)
        return new, self.phase is not before


class PhaseLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM has no types here
    """Samples requests that have `extra_args["phases"]` with the parameters of their current phase."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}  # by index in the batch
        self._index: torch.Tensor | None = None  # [R] indices of `_rows`; None if they have changed
        self._tensors: PhaseTensors | None = None
        self._automata = Automata(lambda: cached_tokenizer_from_config(vllm_config.model_config))

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError if a request has phases that are not valid, or phases and other sampling parameters."""
        check_params(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """False: a repetition penalty may change which token is the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Update the rows with changes of the batch, in the order that vLLM requires: removed, added, moved."""
        if batch_update is None:
            return
        self._index = None
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            phases = phases_of(params)
            row = None if phases is None else _Row(phases, self._automata.of(phases.marker), prompt, output)
            self._put(index, row)
        for a, b, direction in batch_update.moved:
            row_a, row_b = self._rows.pop(a, None), self._rows.pop(b, None)
            self._put(b, row_a)
            self._put(a, row_b if direction == MoveDirectionality.SWAP else None)

    def _put(self, index: int, row: _Row | None) -> None:
        self._rows.pop(index, None)
        if row is not None:
            self._rows[index] = row

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Change the logits [batch, V] of rows with phases."""
        if not self._rows:
            return logits
        # Here and not in update_state: under async scheduling the newest output ids are placeholders until now.
        news = [row.advance() for row in self._rows.values()]
        if self._index is None or self._tensors is None or any(turned for _, turned in news):
            self._index = torch.tensor(list(self._rows), device=logits.device)
            rows = self._rows.values()
            self._tensors = PhaseTensors.of([row.phase for row in rows], [row.text for row in rows], logits)
        elif self._tensors.used is not None:
            at = [(place, token) for place, (new, _) in enumerate(news) for token in new]
            self._tensors.used[[place for place, _ in at], [token for _, token in at]] = True
        logits[self._index] = self._tensors.apply(logits[self._index])
        return logits
