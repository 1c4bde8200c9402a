"""Makes the sections of a model card on the use of the model: code, prompt and answer."""

from __future__ import annotations

import json

from adagrpo_ray.config.data import PLAIN
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.arithmetic import ARITHMETIC
from adagrpo_ray.data.chat import system_message
from adagrpo_ray.data.template_choice import TEMPLATE_FILE
from adagrpo_ray.model.identity import TINY, ModelIdentity
from adagrpo_ray.runs.markdown import code, fenced


def use_adapter(config: Config, base: ModelIdentity) -> str:
    """Code that loads the adapter with PEFT and with vLLM."""
    place = "path/to/the/base/model"
    if base.on_hub:
        place = base.name
    loading = f"base = {json.dumps(place)}\n"
    revision = f", revision={json.dumps(base.revision)}" if base.on_hub and base.revision else ""
    if base.name == TINY or base.gguf is not None:
        effect = "builds the model" if base.gguf is None else "dequantises the GGUF file"
        loading = (
            "from adagrpo_ray.config import Config\n"
            "from adagrpo_ray.model.pretrained import resolve_model\n\n"
            f'base = resolve_model(Config.load("config.yaml"))  # from the run folder; {effect} if necessary\n'
        )
    peft = (
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"{loading}"
        f"tokenizer = AutoTokenizer.from_pretrained(base{revision})\n"
        f"{_own_template(config)}"
        f"model = AutoModelForCausalLM.from_pretrained(base{revision}, dtype=torch.{config.model.dtype})\n"
        'model = PeftModel.from_pretrained(model, "path/to/this/adapter")\n\n'
        f"{_prompt(config)}"
        f"output = model.generate(**prompt, max_new_tokens={config.rollout.max_new_tokens})\n"
        'print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )
    vllm = (
        "from vllm import LLM, SamplingParams\n"
        "from vllm.lora.request import LoRARequest\n\n"
        f"llm = LLM(base{revision}, enable_lora=True, max_lora_rank={config.model.lora.r})\n"
        f"sampling = SamplingParams(temperature=0.0, max_tokens={config.rollout.max_new_tokens})\n"
        'adapter = LoRARequest("adapter", 1, "path/to/this/adapter")\n'
        f"print({_vllm_call(config)}[0].outputs[0].text)\n"
    )
    return f"## Use\n\nWith PEFT:\n\n{fenced(peft, 'python')}\nWith vLLM:\n\n{fenced(vllm, 'python')}"


def _own_template(config: Config) -> str:
    """The line of code that sets the template from the adapter's folder; "" if it is the tokenizer's own."""
    if config.data.chat_template in (None, PLAIN):
        return ""
    return f'tokenizer.chat_template = open("path/to/this/adapter/{TEMPLATE_FILE}").read()\n'


def _prompt(config: Config) -> str:
    """The lines of code that make `prompt` from a question, as in training."""
    if config.data.chat_template == PLAIN:
        return f'text = {_text(config)}\nprompt = tokenizer(text, return_tensors="pt")\n'
    kwargs = config.data.template_kwargs
    return (
        f"messages = {_messages(config)}\n"
        'prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
        f"return_dict=True{f', **{kwargs!r}' if kwargs else ''})\n"
    )


def _vllm_call(config: Config) -> str:
    """The call of vLLM with the same prompt."""
    if config.data.chat_template == PLAIN:
        return "llm.generate(text, sampling, lora_request=adapter)"
    kwargs = config.data.template_kwargs
    template = ", chat_template=tokenizer.chat_template" if _own_template(config) else ""
    arguments = f", chat_template_kwargs={kwargs!r}" if kwargs else ""
    return f"llm.chat(messages, sampling, lora_request=adapter{template}{arguments})"


def use_model(plain: bool = False) -> str:
    """Code that loads a merged model with Transformers and with vLLM; `plain` if its prompts are plain text."""
    if plain:
        transformers = (
            "from transformers import pipeline\n\n"
            'generate = pipeline("text-generation", model="path/to/this/model")\n'
            'text = "..."  # after the text below and a blank line, if there is one\n'
            "print(generate(text)[0]['generated_text'])\n"
        )
        vllm = (
            "from vllm import LLM, SamplingParams\n\n"
            'llm = LLM("path/to/this/model")\n'
            "print(llm.generate(text, SamplingParams(temperature=0.0, max_tokens=512))[0].outputs[0].text)\n"
        )
        return _use(transformers, vllm)
    transformers = (
        "from transformers import pipeline\n\n"
        'generate = pipeline("text-generation", model="path/to/this/model")\n'
        'messages = [{"role": "user", "content": "..."}]  # with the system message below, if there is one\n'
        "print(generate(messages)[0]['generated_text'][-1]['content'])\n"
    )
    vllm = (
        "from vllm import LLM, SamplingParams\n\n"
        'llm = LLM("path/to/this/model")\n'
        "print(llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=512))[0].outputs[0].text)\n"
    )
    return _use(transformers, vllm)


def _use(transformers: str, vllm: str) -> str:
    return f"## Use\n\nWith Transformers:\n\n{fenced(transformers, 'python')}\nWith vLLM:\n\n{fenced(vllm, 'python')}"


def answer_format(config: Config, template: str | None = None) -> str:
    """The system prompt and the chat template of training, and the position of the answer.

    `template` is the text of the file that `data.chat_template` names; None if it is not available.
    """
    return f"## Prompt and answer\n\n{_trained_with(config, template)}\n{_answer(config)}"


def _trained_with(config: Config, template: str | None) -> str:
    system, named = system_message(config.data), config.data.chat_template
    if named == PLAIN:
        if system is None:
            return "It was trained on prompts of plain text, without a chat template.\n"
        return (
            "It was trained on prompts of plain text, without a chat template, after this text and a blank line:\n\n"
            f"{fenced(system)}"
        )
    text = "It was trained with the chat template of its base model"
    if named is not None:
        text = f"It was trained with the chat template {code(TEMPLATE_FILE)} in the folder of its adapter"
    if config.data.template_kwargs:
        text += f", its arguments {code(json.dumps(config.data.template_kwargs, ensure_ascii=False))},"
    message = (
        " and no system message of its own.\n" if system is None else f" and this system message:\n\n{fenced(system)}"
    )
    jinja = f"\nThe template:\n\n{fenced(template, 'jinja')}" if template else ""
    return f"{text}{message}{jinja}"


def _answer(config: Config) -> str:
    markers = config.data.format
    return (
        f"The thoughts of a completion end with {code(markers.think_end)}. Its answer is the text between "
        f"{code(markers.answer_start)} and {code(markers.answer_end)}.\n"
    )


def _messages(config: Config) -> str:
    system = system_message(config.data)
    head = "" if system is None else f'{{"role": "system", "content": {json.dumps(system, ensure_ascii=False)}}}, '
    question = "123+456" if config.data.source == ARITHMETIC else "..."
    return f'[{head}{{"role": "user", "content": "{question}"}}]'


def _text(config: Config) -> str:
    """The prompt of a question as plain text, as a Python literal."""
    system = system_message(config.data)
    question = "123+456" if config.data.source == ARITHMETIC else "..."
    return json.dumps(question if system is None else f"{system}\n\n{question}", ensure_ascii=False)
