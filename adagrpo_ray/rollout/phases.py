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
The processor is written for vLLM's model runner V1, which runs on CPUs. On GPUs vLLM uses V2, which has another
interface: set VLLM_USE_V2_MODEL_RUNNER=0 there.

Axis names: R batch rows that have phases, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor.interface import LogitsProcessor, MoveDirectionality
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from adagrpo_ray.config.refusals import explain
from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.rollout.marker import MarkerWatch, Pieces, TextWatch, Watch

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

KEY = "phases"  # of a request's extra_args
GREEDY_BELOW = 1e-5  # the temperature below which vLLM, too, takes the likeliest token
NEUTRAL = {**PhaseParams().model_dump(), "presence_penalty": 0.0, "frequency_penalty": 0.0}


def phase_args(marker: str | Sequence[int], thought: Any, answer: Any) -> dict[str, Any]:
    """The `extra_args` of a request.

    `thought` and `answer` are mappings, or objects with attributes of PhaseParams; missing ones are neutral. A `marker`
    that is a text is found for any division into tokens. A `marker` of token ids must have the ids that the model
    writes, whose first and last token may include characters of the text next to the marker. Raises ValueError if an
    argument is not valid.
    """
    phases = {
        "marker": marker if isinstance(marker, str) else [int(token) for token in marker],
        "thought": _mapping(thought),
        "answer": _mapping(answer),
    }
    _parse(phases)
    return {KEY: phases}


def _mapping(values: Any) -> dict[str, Any]:
    if isinstance(values, Mapping):
        return dict(values)
    return {name: getattr(values, name) for name in PhaseParams.model_fields if hasattr(values, name)}


def _parse(phases: Any) -> tuple[str | list[int], PhaseParams, PhaseParams]:
    """Marker, thought and answer from the value of `KEY`. Raises ValueError if one is not valid."""
    wanted = {"marker", "thought", "answer"}
    if not isinstance(phases, Mapping) or set(phases) != wanted:
        raise ValueError(f"extra_args[{KEY!r}]={phases!r} must have marker, thought and answer; use phase_args")
    marker = phases["marker"]
    ids = isinstance(marker, list | tuple) and all(type(t) is int and t >= 0 for t in marker)
    if not marker or not (ids or isinstance(marker, str)):
        raise ValueError(f"{KEY}.marker={marker!r} must be a text, or a list of at least one token id")
    thought, answer = (_params(f"{KEY}.{name}", phases[name]) for name in ("thought", "answer"))
    return marker if isinstance(marker, str) else list(marker), thought, answer


def _params(name: str, values: Any) -> PhaseParams:
    """The parameters in a mapping. Raises ValueError, which begins with `name`, if one is not valid."""
    known = ", ".join(PhaseParams.model_fields)
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}={values!r} is not a mapping; give one with some of {known}")
    for key, value in values.items():
        if key not in PhaseParams.model_fields:
            raise ValueError(f"{name}.{key}={value!r} is not known; use {known}")
    try:
        return PhaseParams(**values)
    except ValidationError as error:
        raise ValueError(f"{name}.{explain(error.errors()[0], PhaseParams)}") from None


def penalise_repetition(logits: torch.Tensor, used: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Divide the positive logits [R, V] of `used` tokens [R, V] by `penalty` [R], and multiply the others by it."""
    penalty = penalty[:, None]
    return torch.where(used, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def apply_temperature(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Divide logits [R, V] by `temperature` [R]; a greedy row keeps only the likeliest token, with logit 0."""
    greedy = temperature < GREEDY_BELOW
    scaled = logits / temperature.masked_fill(greedy, 1.0)[:, None]
    likeliest = torch.full_like(logits, -torch.inf).scatter_(1, logits.argmax(dim=1, keepdim=True), 0.0)
    return torch.where(greedy[:, None], likeliest, scaled)


def filter_min_p(logits: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Remove the tokens from logits [R, V] that are less probable than `min_p` [R] times the likeliest one."""
    probabilities = logits.softmax(dim=1)
    least = probabilities.amax(dim=1, keepdim=True) * min_p[:, None]
    return logits.masked_fill(probabilities < least, -torch.inf)


@dataclass(frozen=True)
class PhaseTensors:
    """The parameters of R rows; a filter that no row uses is None.

    - `temperature`, `min_p`, `top_k`, `top_p`, `penalty`: [R].
    - `used` [R, V]: whether a token is in the prompt or the output of a row.
    """

    temperature: torch.Tensor
    min_p: torch.Tensor | None
    top_k: torch.Tensor | None
    top_p: torch.Tensor | None
    penalty: torch.Tensor | None
    used: torch.Tensor | None

    @classmethod
    def of(cls, phases: Sequence[PhaseParams], texts: Sequence[Sequence[int]], logits: torch.Tensor) -> PhaseTensors:
        """Tensors for rows in these phases with these token ids (prompt and output).

        Vocabulary and device are those of `logits` [., V].
        """
        size, device = logits.shape[1], logits.device

        def column(values: Sequence[float], off: float, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
            return None if all(v == off for v in values) else torch.tensor(values, dtype=dtype, device=device)

        penalty = column([p.repetition_penalty for p in phases], 1.0)
        used = None
        if penalty is not None:
            used = torch.zeros(len(phases), size, dtype=torch.bool, device=device)
            for row, (phase, text) in enumerate(zip(phases, texts, strict=True)):
                if phase.repetition_penalty != 1.0:
                    used[row, torch.tensor(text, dtype=torch.long, device=device)] = True
        return cls(
            temperature=torch.tensor([p.temperature for p in phases], dtype=torch.float32, device=device),
            min_p=column([p.min_p for p in phases], 0.0),
            # vLLM's value for "off" is the size of the vocabulary.
            top_k=column([min(p.top_k or size, size) for p in phases], size, torch.int32),
            top_p=column([p.top_p for p in phases], 1.0),
            penalty=penalty,
            used=used,
        )

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the parameters to the logits [R, V] of the rows, in float32 and in the order of vLLM's steps."""
        if self.penalty is not None and self.used is not None:
            logits = penalise_repetition(logits, self.used, self.penalty)
        logits = apply_temperature(logits, self.temperature)
        if self.min_p is not None:
            logits = filter_min_p(logits, self.min_p)
        # vLLM's own function: sorting the vocabulary at each step would cost as much as a small model.
        filtered: torch.Tensor = apply_top_k_top_p(logits, self.top_k, self.top_p)
        return filtered


class _Row:
    """A request with phases. `output` is vLLM's own list and grows."""

    def __init__(self, phases: Any, prompt: Sequence[int] | None, output: Sequence[int], pieces: Pieces) -> None:
        marker, self._thought, self._answer = _parse(phases)
        self._watch: Watch = TextWatch(marker, pieces) if isinstance(marker, str) else MarkerWatch(marker)
        self._prompt, self._output = prompt or (), output

    @property
    def phase(self) -> PhaseParams:
        return self._answer if self._watch.seen else self._thought

    @property
    def text(self) -> list[int]:
        return [*self._prompt, *self._output]

    def advance(self) -> tuple[Sequence[int], bool]:
        """Read the output ids since the last call; returns them, and whether they ended the thought."""
        read, seen = self._watch.read, self._watch.seen
        return self._output[read:], self._watch.update(self._output) != seen


class PhaseLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM has no types here
    """Samples requests that have `extra_args["phases"]` with the parameters of their current phase."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}  # by index in the batch
        self._index: torch.Tensor | None = None  # [R] indices of `_rows`; None if they have changed
        self._tensors: PhaseTensors | None = None
        self._pieces = Pieces(lambda: cached_tokenizer_from_config(vllm_config.model_config))

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError if a request has phases that are not valid, or phases and other sampling parameters."""
        phases = (sampling_params.extra_args or {}).get(KEY)
        if phases is None:
            return
        _parse(phases)
        for key, neutral in NEUTRAL.items():
            value = getattr(sampling_params, key)
            if value != neutral and not (key == "top_k" and value == -1):
                raise ValueError(
                    f"{key}={value!r} together with extra_args[{KEY!r}]; leave it at {neutral} and set it in the phases"
                )

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
            phases = (params.extra_args or {}).get(KEY)
            self._put(index, _Row(phases, prompt, output, self._pieces) if phases is not None else None)
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
