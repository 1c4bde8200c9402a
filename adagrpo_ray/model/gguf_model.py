"""A GGUF file as a base model, dequantised once to safetensors in the user's cache.

Neither DeepSpeed nor vLLM's LoRA kernels accept the blocks of GGUF, and an adapter cannot be merged into them. The
weights are stored in float32. Each value of each GGUF type is a product and a sum of small numbers that float32
represents, so nothing is lost, and rounding depends on `model.dtype` alone when the weights are loaded. In bfloat16 the
weights would take half of the disk, but a run in float32 would train on other weights than those of the file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.model.gguf_file import base_name, file_digest, find_gguf
from adagrpo_ray.model.gguf_header import FLOATS, Header, read_header
from adagrpo_ray.model.gguf_rope import ROPE_FACTORS, set_rope
from adagrpo_ray.model.gguf_tokenizer import check_reloaded, end_tokens, load_gguf_tokenizer
from adagrpo_ray.storage.cache import cache_folder
from adagrpo_ray.storage.cached import make_once, progress, save_model, without_bars

ORIGIN = "gguf.json"
"""File with the Origin in the folder of a converted model."""
# Raise it with every change of the code that changes the result of a conversion.
VERSION = 1
TOKENIZER_BYTES = 2**25
"""Disk space for the tokenizer and small files; the largest tokenizers have a quarter of a million tokens."""


@dataclass(frozen=True)
class Origin:
    """The GGUF file from which a folder was made: `digest` is its SHA-256, `types` has the types of its tensors."""

    name: str
    digest: str
    types: str
    license: str | None = None

    @property
    def in_words(self) -> str:
        """A sentence on the origin of the weights, which are not those of the original model."""
        converted = "converted" if self.types.split(" ")[0] in FLOATS else "dequantised"
        return f"the base weights are {converted} from {self.types} of {self.name}, SHA-256 {self.digest}"


def read_origin(folder: Path) -> Origin | None:
    """Return the GGUF file from which the model in `folder` was made; None if it was made from no GGUF file."""
    try:
        return Origin(**json.loads((folder / ORIGIN).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def gguf_folder(digest: str) -> Path:
    """Return the folder of the model from the GGUF file with that SHA-256, which may not exist."""
    return cache_folder() / f"gguf-{VERSION}-{digest[:32]}"


def dequantised(name: str, setting: str = "model.path") -> Path:
    """Return the folder of the model in the GGUF file `name`: safetensors in float32, tokenizer and chat template.

    The folder is made on the first use of a file with this content. Raises ModelError, which names `setting`, if the
    file cannot be found, read or converted, or if there is no room.
    """
    file = find_gguf(name, setting)
    called = f"{setting}={name!r}"
    header = read_header(file, called)
    digest = file_digest(file, called)
    folder = gguf_folder(digest)
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise ModelError(f"{called} needs the package gguf, which is not installed: pip install 'adagrpo_ray[gguf]'")
    origin = Origin(base_name(name), digest, header.in_words, _license(header))
    try:
        return make_once(folder, lambda partial: _make(partial, file, header, called, origin))
    except OSError as error:
        raise ModelError(
            f"{called}: cannot write its weights to {folder}: {error}; set XDG_CACHE_HOME to a folder that can be "
            f"written and has {_gib(_bytes(header))} free"
        ) from None


def gguf_config(header: Header, called: str) -> Any:
    """Return a Transformers configuration with the sizes in the header, which is enough to estimate memory only.

    Raises ModelError if the file has no token embeddings.
    """
    from transformers import PreTrainedConfig

    heads, key_values = (header.of_model(f"attention.{key}") for key in ("head_count", "head_count_kv"))
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{called} holds no token_embd.weight, and so no language model")
    return PreTrainedConfig(
        model_type=header.architecture,
        hidden_size=header.of_model("embedding_length"),
        num_hidden_layers=header.of_model("block_count"),
        intermediate_size=_largest(header.of_model("feed_forward_length")),
        num_attention_heads=_largest(heads),
        num_key_value_heads=_largest(key_values),
        head_dim=header.of_model("attention.key_length"),
        num_experts=header.of_model("expert_count"),
        vocab_size=embedding.shape[1],
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in header.tensors),
    )


def _largest(value: Any) -> Any:
    return max(value, default=None) if isinstance(value, tuple) else value


def _license(header: Header) -> str | None:
    name = header.values.get("general.license")
    return name if isinstance(name, str) and name else None


def _make(folder: Path, file: Path, header: Header, called: str, origin: Origin) -> None:
    """Write the model in `file` into `folder`.

    Raises ModelError if it cannot be converted, and OSError if there is no room.
    """
    _check_room(folder, header, called)
    parent, name = str(file.parent.absolute()), file.name
    converted = f"{origin.name} from {header.in_words} to float32"
    title, done = f"dequantising {converted}, once", f"dequantised {converted}, into {folder.with_suffix('')}"
    with progress(title, len(header.tensors) + 2, done) as advance:
        with without_bars():
            config = _config(file, header, called)
            tokenizer = load_gguf_tokenizer(parent, name, header, called)
        advance()
        model = _load(parent, name, config, called, advance)
        if len(tokenizer) > config.get_text_config().vocab_size:
            raise ModelError(
                f"{called}: its tokenizer has {len(tokenizer)} tokens, more than its weights; copy it again"
            )
        _name_ends(model, tokenizer, header)
        save_model(model, tokenizer, folder)
        check_reloaded(tokenizer, str(folder), called)
        (folder / ORIGIN).write_text(json.dumps(asdict(origin), indent=2) + "\n", encoding="utf-8")
        advance()


def _config(file: Path, header: Header, called: str) -> Any:
    """Return Transformers' configuration of the model.

    Raises ModelError if it is no causal language model or has more parameters than the file.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    layers = header.of_model("block_count")
    if not isinstance(layers, int) or not 1 <= layers <= len(header.tensors):
        raise ModelError(
            f"{called} claims {header.architecture}.block_count={layers!r:.100}, and it holds {len(header.tensors)} "
            "tensors; copy or download it again"
        )
    try:
        found = AutoConfig.from_pretrained(str(file.parent.absolute()), gguf_file=file.name)
    except Exception as error:  # Transformers raises many errors for bad files
        raise ModelError(
            f"{called} is of the architecture {header.architecture!r}, which Transformers cannot read from GGUF "
            f"({first_line(error)}); give a folder of that model with safetensors"
        ) from None
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{called} is of the architecture {header.architecture!r}, no causal language model; give one")
    set_rope(found, file, header, called)
    claimed = _empty(found, called).num_parameters()
    spare = sum(tensor.shape[0] for tensor in header.tensors if tensor.name == ROPE_FACTORS)
    if claimed > header.numbers - spare:
        raise ModelError(
            f"{called}: its metadata describe a model of {claimed} parameters, and its tensors hold "
            f"{header.numbers - spare}; copy or download it again"
        )
    return found


def _empty(config: Any, called: str) -> Any:
    """Return the model of a configuration, without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # Transformers raises many errors for bad files
        raise ModelError(f"{called} cannot be built as a model: {first_line(error)}") from None


def _load(parent: str, name: str, config: Any, called: str, advance: Callable[[], None]) -> Any:
    """Return the model with the weights of the file in float32.

    Raises ModelError if a weight is missing, has another shape or is not finite.
    """
    import torch
    import transformers

    # Versions of Transformers with this setting would keep the blocks of some architectures.
    made = getattr(transformers, "GgufConfig", None)
    unpacked = {} if made is None else {"quantization_config": made(dequantize=True)}
    try:
        with without_bars(), _advancing(advance):
            loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
                parent,
                gguf_file=name,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **unpacked,
            )
    except Exception as error:  # Transformers raises many errors for bad files
        raise ModelError(
            f"{called} cannot be dequantised: {first_line(error)}; give another file of that model"
        ) from None
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, report[problem])):
            raise ModelError(
                f"{called} does not fill the model of its architecture: {problem.replace('_', ' ')} {names[0]} "
                f"({len(names)} such keys); copy or download it again"
            )
    weights = loaded.state_dict()
    for key, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{called}: {key} has numbers that are not finite; copy or download it again")
    # A new model: Transformers does not save one that was loaded from a GGUF file, since it counts as quantised.
    for leftover in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    model = _empty(config, called)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model


@contextmanager
def _advancing(advance: Callable[[], None]) -> Iterator[None]:
    """Call `advance` for each tensor that Transformers dequantises in the block, and hide Transformers' own bar."""
    from transformers import modeling_gguf_pytorch_utils as theirs

    def counted(items: Any, **_: Any) -> Iterator[Any]:
        for item in items:
            yield item
            advance()

    before = getattr(theirs, "tqdm", None)
    if before is None:  # a version without a bar here
        yield
        return
    theirs.tqdm = counted
    try:
        yield
    finally:
        theirs.tqdm = before


def _name_ends(model: Any, tokenizer: Any, header: Header) -> None:
    """Set the tokens that end generation: vLLM and `generate` read them in generation_config.json."""
    from transformers import GenerationConfig

    ends = end_tokens(header)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends if len(ends) > 1 else next(iter(ends), None),
    )


def _bytes(header: Header) -> int:
    return header.numbers * 4 + TOKENIZER_BYTES


def _check_room(folder: Path, header: Header, called: str) -> None:
    """Raise ModelError if the disk or the memory has no room for the weights in float32."""
    needed = _bytes(header)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ModelError(
            f"{called} takes {_gib(needed)} in float32, and {folder.parent} has {_gib(free)} free; make room, or set "
            "XDG_CACHE_HOME to a folder of another disk"
        )
    with suppress(ImportError):
        import psutil

        # The weights, and a few tensors during the conversion.
        if (free := psutil.virtual_memory().available) < needed * 5 // 4:
            raise ModelError(
                f"{called} takes {_gib(needed * 5 // 4)} of memory to dequantise, and {_gib(free)} are free; make room"
            )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
