"""Malformed input of every kind gives one clear error that names the problem, or a row is dropped and counted."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import PromptSets, load_prompts
from adagrpo_ray.errors import ConfigError
from tests.support.ground_truths import TOKENIZER
from tests.support.places import TINY

Refused = Callable[..., str]

GOOD = {"prompt": "1+1", "solution": "2"}


def parquet(**columns: list[Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def load(source: Path, **settings: Any) -> PromptSets:
    data = {"source": str(source), "eval_prompts": 0}
    return load_prompts(
        Config.model_validate({"data": data, "algorithm": {"prompts_per_step": 1}, **settings}), TOKENIZER
    )


def has_all(message: str, parts: tuple[str, ...]) -> bool:
    missing = [part for part in parts if part not in message]
    assert not missing, message
    return True


# --- rows that are dropped and counted ---

NO_PROMPT, NO_ANSWER = "without a prompt", "without an answer"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ""}, NO_PROMPT),
        ({"prompt": " \t\n"}, NO_PROMPT),
        ({"prompt": "\u00a0\u2003"}, NO_PROMPT),
        ({"prompt": None}, NO_PROMPT),
        ({"prompt": 5}, NO_PROMPT),
        ({"prompt": float("nan")}, NO_PROMPT),
        ({"prompt": True}, NO_PROMPT),
        ({"prompt": []}, NO_PROMPT),
        ({"prompt": [{"role": "user"}]}, NO_PROMPT),
        ({"prompt": [{"role": "user", "content": " "}]}, NO_PROMPT),
        ({"prompt": [{"role": "assistant", "content": "1+2"}]}, NO_PROMPT),
        ({"solution": None}, NO_ANSWER),
        ({"solution": ""}, NO_ANSWER),
        ({"solution": " \n"}, NO_ANSWER),
        ({"solution": ["2"]}, NO_ANSWER),
        ({"solution": {"value": "2"}}, NO_ANSWER),
        ({"solution": float("nan")}, NO_ANSWER),
        ({"solution": float("inf")}, NO_ANSWER),
        ({"prompt": "half of a pair \ud800"}, "not Unicode"),
        ({"prompt": [{"role": "user", "content": "\udfff"}]}, "not Unicode"),
        ({"solution": "\ud800"}, "not Unicode"),
        ({"prompt": "1+1", "solution": 2}, "double"),
        ({"prompt": "1" * 100_000}, "too long"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else value,
)
def test_unusable_row_is_dropped_and_counted(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    lines = [GOOD, {"prompt": "1+2", "solution": "3", **row}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prompts = load(tmp_path / "d.jsonl", rollout={"max_model_len": 512, "max_new_tokens": 96})
    assert [p.text for p in prompts.train] == ["1+1"]
    assert prompts.dropped == {reason: 1}


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"prompt": "1+1", "solution": "2"}\n',
        b'\r\n{"prompt": "1+1", "solution": "2"}\r\n',
        b'{"prompt": "1+1", "solution": 2}',
        b'{"prompt": "1+1", "solution": ' + b"2" * 4000 + b"}",
    ],
    ids=["byte order mark", "line ends of Windows", "no line end", "a long number"],
)
def test_unusual_but_readable_files_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    prompts = load(tmp_path / "d.jsonl")
    assert ([p.text for p in prompts.train], prompts.dropped) == (["1+1"], {})


# --- data that is refused ---

LINE = json.dumps(GOOD).encode() + b"\n"
NESTED = json.dumps({**GOOD, "meta": {"class": "easy"}, "list": ["a"]}).encode()
PARQUET = parquet(prompt=["1+1"] * 50, solution=["2"] * 50)


@pytest.mark.parametrize(
    ("name", "content", "overrides", "expected"),
    [
        ("d.jsonl", b"", (), ("data.source='d.jsonl'", "is empty")),
        ("d.jsonl", b"\n \n", (), ("data.source='d.jsonl'", "is empty")),
        ("d.jsonl", LINE + LINE[:20], (), ("d.jsonl, line 2 is not JSON", "correct or remove it")),
        ("d.jsonl", b"prompt,solution\n1+1,2\n", (), ("d.jsonl, line 1 is not JSON",)),
        ("d.jsonl", b"{'prompt': 'a'}\n", (), ("d.jsonl, line 1 is not JSON",)),
        ("d.jsonl", b"[" + LINE.strip() + b"]\n", (), ("d.jsonl, line 1 holds a list",)),
        ("d.jsonl", b"5\n", (), ("d.jsonl, line 1 holds a int",)),
        ("d.jsonl", b'"text"\n', (), ("d.jsonl, line 1 holds a str",)),
        ("d.jsonl", b"null\n", (), ("d.jsonl, line 1 holds a NoneType",)),
        ("d.jsonl", b"[" * 100_000, (), ("d.jsonl, line 1 is not JSON",)),
        ("d.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", (), ("d.jsonl, line 1 is not JSON", "5000 digits")),
        ("d.jsonl", b'{"prompt": "\xff\xfe"}\n', (), ("d.jsonl", "UTF-8")),
        ("d.jsonl", LINE.decode().encode("utf-16"), (), ("d.jsonl", "UTF-8")),
        ("d.jsonl", b"\x1f\x8b\x08\x00\x00\x00" * 9, (), ("d.jsonl", "UTF-8")),
        ("d.jsonl", PARQUET, (), ("d.jsonl",)),
        ("d.jsonl", b'{"solution": "2"}\n', (), ("data.columns.prompt='prompt'", "row 1", "it has solution")),
        ("d.jsonl", LINE + b'{"prompt": "1"}\n', (), ("data.columns.ground_truth='solution'", "row 2")),
        (
            "d.jsonl",
            NESTED,
            ("data.columns.ground_truth=solution.x",),
            ("data.columns.ground_truth='solution.x'", "'solution'"),
        ),
        ("d.jsonl", NESTED, ("data.columns.ground_truth=list.0",), ("data.columns.ground_truth='list.0'", "'list'")),
        ("d.jsonl", NESTED, ("data.columns.ground_truth=meta.clas",), ("'clas' in 'meta'", "did you mean 'class'")),
        ("d.jsonl", NESTED, ("data.columns.prompt=a..b",), ("data.columns.prompt='a..b'",)),
        (
            "d.jsonl",
            NESTED,
            ("data.columns.difficulty=meta",),
            ("data.columns.difficulty='meta' holds a dict", "row 1"),
        ),
        ("d.jsonl", NESTED, ("data.columns.difficulty=list",), ("data.columns.difficulty='list' holds a list",)),
        ("d.jsonl", LINE, (), ("leaves 0 prompts to train on and 1 held out", "algorithm.prompts_per_step=16")),
        ("d.jsonl", b'{"prompt": "", "solution": "2"}\n', (), ("dropped: 1 without a prompt",)),
        (
            "d.jsonl",
            b'{"prompt": "' + b"1" * 100_000 + b'", "solution": "2"}',
            ("algorithm.prompts_per_step=1", "data.eval_prompts=0"),
            ("prompts of up to 1000", "lower rollout.max_new_tokens or data.length_quantile"),
        ),
        ("d.parquet", PARQUET[:-30], (), ("cannot read d.parquet", "it must be a parquet file")),
        ("d.parquet", PARQUET[:200], (), ("cannot read d.parquet",)),
        ("d.parquet", LINE, (), ("cannot read d.parquet",)),
        ("d.parquet", b"", (), ("cannot read d.parquet",)),
        ("d.parquet", parquet(prompt=[], solution=[]), (), ("data.source='d.parquet' is empty",)),
        ("d.parquet", parquet(question=["1+1"], solution=["2"]), (), ("data.columns.prompt='prompt'", "question")),
        ("other.jsonl", LINE, (), ("data.source='d.jsonl' is no file", "there is 'other.jsonl'")),
        ("d.jsonl", b'{"prompt": "0", "prompt": "1"}\n', (), ("d.jsonl, line 1", "it has the key 'prompt' twice")),
        ("set/readme.bin", b"\x00", (), ("data.source='set'", "a folder without a file to read")),
        ("set/train.csv", b"prompt\n1\n1,2,3\n", (), ("set/train.csv, line 3 has 3 cells",)),
        ("set/train.json", b"{", (), ("set/train.json is not JSON",)),
        ("set/set.py", b"open('executed', 'w')", (), ("data.source='set'", "a folder without a file to read")),
        ("set/train.pkl", b"cbuiltins\nopen\n(Vexecuted\nVw\ntR.", (), ("data.source='set'", "without a file")),
        ("set/set.py", b"open('executed', 'w')", ("data.subset=a",), ("data.source='set'", "cannot be loaded")),
    ],
)
def test_unusable_data_is_refused(
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    content: bytes,
    overrides: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    source = "set" if name.startswith("set/") else "d.parquet" if name.endswith(".parquet") else "d.jsonl"
    assert has_all(refused(f"data.source={source}", *overrides), expected)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["x" * 5000 + ".jsonl", "\x01.parquet", "nowhere/d.jsonl"], ids=lambda n: n[-12:])
def test_names_of_missing_data_are_refused(refused: Refused, name: str) -> None:
    assert has_all(refused(f"data.source={json.dumps(name)}"), ("data.source=", "is no file"))


# --- configuration files ---

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"run:\n\tsteps: 5\n", ("bad.yaml is not valid YAML at line 2",)),
        (b"run: {steps: [1\n", ("bad.yaml is not valid YAML at line 2",)),
        (b"run: 'open\n", ("bad.yaml is not valid YAML",)),
        (b"run: {}\n---\nrun: {}\n", ("bad.yaml is not valid YAML", "another document")),
        (b"run: \x00\n", ("bad.yaml is not valid YAML", "special characters")),
        (b"\xff\xfe\xff", ("cannot read the configuration bad.yaml", "utf-8")),
        (b"- run\n", ("bad.yaml holds a list", "mapping of sections")),
        (b"just words\n", ("bad.yaml holds a str",)),
        (b"42\n", ("bad.yaml holds a int",)),
        (b"data: 5\n", ("data=5",)),
        (b"data: [source]\n", ("data=['source']",)),
        (b"rum: {}\n", ("unknown key 'rum'", "did you mean 'run'")),
        (b"5: {}\n", ("5",)),
        (b"null: {}\n", ("unknown key 'null'",)),
        (b"{[1]: 2}\n", ("bad.yaml is not valid YAML", "a key must be a word or a number")),
        (b"run: {steps: 2026-13-45}\n", ("run.steps='2026-13-45'",)),
        (b"run: {}\nrun: {}\n", ("bad.yaml is not valid YAML at line 2, column 1", "'run' is given twice")),
        (b"run: {steps: !!int many}\n", ("bad.yaml is not valid YAML",)),
        (b"run: {name: !!timestamp now}\n", ("bad.yaml is not valid YAML",)),
        (b"run: {steps: !!bool perhaps}\n", ("bad.yaml is not valid YAML",)),
        (b"run: !!python/object/apply:builtins.open [executed, w]\n", ("bad.yaml is not valid YAML", "python/object")),
        (b"run: {steps: " + b"9" * 5000 + b"}\n", ("run.steps=999", "too many digits")),
        (b"[" * 10_000, ("bad.yaml is not valid YAML", "recursion")),
        (BOMB.encode(), ("bad.yaml is not valid YAML at line 4", "more than 20 aliases")),
        (MERGES.encode(), ("bad.yaml is not valid YAML at line 4", "more than 20 aliases")),
        (b"run: &a {steps: *a}\n", ("bad.yaml is not valid YAML", "holds itself")),
        (b"run: {steps: *nothing}\n", ("bad.yaml is not valid YAML", "undefined alias")),
    ],
)
def test_unusable_configuration_files_are_refused(
    refused: Refused, tmp_path: Path, content: bytes, expected: tuple[str, ...]
) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    assert has_all(refused(config="bad.yaml"), expected)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("name", "expected"), [(".", "cannot read the configuration ."), ("x" * 300, "too long")])
def test_names_of_missing_configurations_are_refused(refused: Refused, name: str, expected: str) -> None:
    assert expected in refused(config=name)


SECTIONS = (
    *("run", "model", "model.lora", "arithmetic", "data", "data.columns", "data.format", "rewards", "algorithm"),
    *("algorithm.sampling", "algorithm.criterion", "algorithm.allocation", "algorithm.loss", "rollout", "learner"),
    *("evaluation", "evaluation.sampling", "checkpoint"),
)


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_key_of_any_section_is_refused(refused: Refused, section: str) -> None:
    assert f"unknown key '{section}.zzz' (value 1)" in refused(f"{section}.zzz=1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.steps=.nan", "run.steps=.nan"),
        ("run.steps=.inf", "run.steps=.inf"),
        ("run.steps=-1", "run.steps=-1"),
        ("run.steps=1.5", "run.steps=1.5"),
        ("run.steps=1" + "0" * 30, "run.steps=1000"),
        ("run.steps=many", "run.steps='many'"),
        ("run.steps=null", "run.steps=null"),
        ("run.steps=[]", "run.steps=[]"),
        ("run.steps={}", "run.steps={}"),
        ("run.name=", "has no value; write run.name=null"),
        ("run.name=../other", "run.name='../other'"),
        ("run.output_dir=''", "run.output_dir=''"),
        ("run.seed=-1", "run.seed=-1"),
        ("model.path=5", "model.path='5'"),
        ("model.lora.r=7", "model.lora.r=7"),
        ("model.lora.alpha=.inf", "model.lora.alpha=inf"),
        ("model.lora.targets=q_proj", "model.lora.targets='q_proj'"),
        ("data.columns=prompt", "data.columns='prompt'"),
        ("data.source=null", "data.source=null"),
        ("data.eval_prompts=-5", "data.eval_prompts=-5"),
        ("data.system_prompt='{nothing}'", "data.system_prompt='{nothing}'"),
        ("rewards.functions=[]", "rewards.functions=[]"),
        ("rewards.functions=exact", "rewards.functions='exact'"),
        ("rewards.functions=[{function: exact, weight: .nan}]", "rewards.functions.0.weight=nan"),
        ("algorithm.group_size=1", "algorithm.group_size=1"),
        ("algorithm.triggers=[5]", "algorithm.triggers.0=5"),
        ("algorithm.triggers=[{from_step: 1, rungs: [{temperature: .inf}]}]", "rungs.0.temperature=inf"),
        ("rollout.actors=1e400", "rollout.actors="),
        ("rollout.resources={Bad Name: 1}", "rollout.resources.Bad Name"),
        ("rollout.kv_cache_gib=-1", "rollout.kv_cache_gib=-1"),
        ("learner.learning_rate=.nan", "learner.learning_rate=nan"),
        ("learner.learning_rate=-1e-4", "learner.learning_rate=-0.0001"),
        ("learner.betas=[0.9]", "learner.betas"),
        ("learner.betas=[2, 3]", "learner.betas.0=2"),
        ("arithmetic.keep_carry={1: 0.5}", "arithmetic.keep_carry.1"),
        ("evaluation.sampling.temperature=hot", "evaluation.sampling.temperature='hot'"),
        ("checkpoint.save_total_limit=0", "checkpoint.save_total_limit=0"),
        ("run.steps=" + "x" * 100_000, "run.steps='xxx"),
        # Malformed overrides
        ("run.steps", "cannot read the override 'run.steps'"),
        ("=5", "cannot read the override '=5'"),
        (".steps=5", "cannot read the override '.steps=5'"),
        ("run..steps=5", "cannot read the override 'run..steps=5'"),
        ("a.b.c.d.e.f.g=1", "unknown key 'a'"),
        (".".join(["deep"] * 3000) + "=1", "unknown key 'deep'"),
        ("run.steps.more=1", "run.steps is the value 60 and has no 'more'"),
        ("run.steps={", "the value of run.steps is not valid YAML"),
        ("run.steps=" + "[" * 10_000, "the value of run.steps is not valid YAML"),
        ("rewards.functions.1.weight=1", "rewards.functions is a list of 1; '1' is none of its numbers 0 to 0"),
        ("rewards.functions.-1.weight=1", "rewards.functions is a list of 1; '-1'"),
        ("rewards.functions.².weight=1", "rewards.functions is a list of 1; '²'"),
    ],
    ids=lambda value: value[:40],
)
def test_unusable_settings_are_refused(refused: Refused, override: str, expected: str) -> None:
    message = refused(override)
    assert expected in message
    assert len(message) < 1000


# --- folders of models and adapters ---


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda m: (m / "config.json").unlink(), ("model.path='model' holds no config.json",)),
        (lambda m: (m / "config.json").write_text("{"), ("model.path='model'", "config.json")),
        (lambda m: (m / "config.json").write_text("[]"), ("model.path='model'", "config.json")),
        (lambda m: (m / "config.json").write_text("{}"), ("model.path='model'", "config.json")),
        (lambda m: (m / "config.json").write_bytes(b"\xff\x00"), ("model.path='model'", "config.json")),
        (lambda m: edited(m / "config.json", model_type="zzz"), ("model.path='model'", "config.json")),
        (lambda m: edited(m / "config.json", hidden_size="wide"), ("model.path='model'", "config.json")),
        (lambda m: edited(m / "config.json", model_type="t5"), ("model.path='model'", "'t5'", "causal")),
        (lambda m: (m / "model.safetensors").unlink(), ("model.path='model' holds no *.safetensors",)),
        (lambda m: cut(m / "model.safetensors"), ("model/model.safetensors is damaged",)),
        (lambda m: (m / "model.safetensors").write_bytes(b""), ("model/model.safetensors is damaged",)),
        (lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 99), ("model/model.safetensors is damaged",)),
        (lambda m: (m / "tokenizer.json").unlink(), ("model.path='model' has no tokenizer that can be used",)),
        (lambda m: (m / "tokenizer.json").write_text("{"), ("model.path='model' has no tokenizer",)),
        (lambda m: (m / "tokenizer_config.json").write_text("["), ("model.path='model' has no tokenizer",)),
        (lambda m: (m / "chat_template.jinja").unlink(), ("model.path='model'", "no chat template")),
        (lambda m: (m / "chat_template.jinja").write_text("{% if %}"), ("the model's chat template refuses",)),
        (lambda m: (m / "chat_template.jinja").write_text("{{ 1 / 0 }}"), ("the model's chat template refuses",)),
        (
            lambda m: (m / "chat_template.jinja").write_text("{{ nothing.at.all }}"),
            ("the model's chat template refuses",),
        ),
        (lambda m: (m / "adapter_config.json").write_text("{}"), ("holds adapter_config.json", "model.adapter")),
        (lambda m: (shutil.rmtree(m), m.write_text("a file")), ("model.path='model' is no folder",)),
    ],
)
def test_unusable_models_are_refused(
    refused: Refused, tiny_model: Path, tmp_path: Path, break_it: Callable[[Path], Any], expected: tuple[str, ...]
) -> None:
    break_it(shutil.copytree(tiny_model, tmp_path / "model"))
    assert has_all(refused("model.path=model"), expected)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("{", "model.safetensors.index.json is not JSON"),
        ("[]", "model.safetensors.index.json holds a list"),
        ('{"weight_map": {"a": "part.bin"}}', "names 'part.bin'"),
        ('{"weight_map": {"a": "../shard.safetensors"}}', "names '../shard.safetensors'"),
        ('{"weight_map": 5}', "names '5'"),
    ],
)
def test_index_of_missing_weights_is_refused(
    refused: Refused, tiny_model: Path, tmp_path: Path, index: str, expected: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert expected in refused("model.path=model")


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from adagrpo_ray.lora.peft_model import load_policy

    folder = tmp_path_factory.mktemp("adapter")
    load_policy(str(tiny_model), Config.model_validate({"model": {"dtype": "float32"}})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda a: (a / "adapter_config.json").unlink(), ("model.adapter='adapter' holds no adapter_config.json",)),
        (lambda a: (a / "adapter_model.safetensors").unlink(), ("holds no adapter_model.safetensors",)),
        (lambda a: (a / "adapter_config.json").write_text("{"), ("adapter/adapter_config.json is not JSON",)),
        (lambda a: (a / "adapter_config.json").write_text("5"), ("adapter/adapter_config.json holds a int",)),
        (lambda a: edited(a / "adapter_config.json", r=8), ("has r=8", "model.lora.r=16")),
        (
            lambda a: edited(a / "adapter_config.json", lora_alpha="x"),
            ("model.adapter='adapter' has r=16 and alpha='x'",),
        ),
        (lambda a: edited(a / "adapter_config.json", peft_type="IA3"), ("peft_type='IA3'",)),
        (lambda a: edited(a / "adapter_config.json", use_dora=True), ("use_dora=True",)),
        (lambda a: edited(a / "adapter_config.json", bias="all"), ("bias='all'",)),
        (lambda a: cut(a / "adapter_model.safetensors"), ("adapter/adapter_model.safetensors is damaged",)),
        (lambda a: (shutil.rmtree(a), a.write_text("a file")), ("model.adapter='adapter' is no folder",)),
    ],
)
def test_unusable_adapters_are_refused(
    refused: Refused, adapter: Path, tmp_path: Path, break_it: Callable[[Path], Any], expected: tuple[str, ...]
) -> None:
    break_it(shutil.copytree(adapter, tmp_path / "adapter"))
    assert has_all(refused("model.adapter=adapter"), expected)


# --- functions of users ---

MODULES = {
    "malformed_raises": "raise RuntimeError('on import')",
    "malformed_exits": "import sys; sys.exit(3)",
    "malformed_syntax": "def f(:",
    "malformed_plain": "value = 5\ndef function(**_): return []",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("exakt", "'exakt' is not built in; did you mean 'exact'?"),
        (":f", "':f' is not built in"),
        ("module:", "'module:' is not built in"),
        ("malformed_missing:f", "the module of 'malformed_missing:f' is not there"),
        ("os.path.more:f", "os.path.more:f"),
        (".relative:f", ".relative:f"),
        ("malformed_raises:f", "importing the module of 'malformed_raises:f' raised RuntimeError('on import')"),
        ("malformed_exits:f", "importing the module of 'malformed_exits:f' raised SystemExit(3)"),
        ("malformed_syntax:f", "importing the module of 'malformed_syntax:f' raised SyntaxError"),
        ("malformed_plain:functoin", "did you mean 'malformed_plain:function'?"),
        ("malformed_plain:value", "'malformed_plain:value' is 5, which cannot be called"),
    ],
)
@pytest.mark.parametrize("setting", ["rewards.functions", "algorithm.criterion.kind"])
def test_unusable_functions_are_refused(
    refused: Refused, tmp_path: Path, setting: str, name: str, expected: str
) -> None:
    for module, text in MODULES.items():
        (tmp_path / f"{module}.py").write_text(text)
    value = json.dumps([{"function": name}] if setting.startswith("rewards") else name)
    message = refused(f"{setting}={value}")
    assert setting in message
    assert expected in message or "exact" in expected  # names of built-in criteria are others


# --- run folders to resume from and to write to ---


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("nowhere", "nowhere has no checkpoints; give --resume a run folder"),
        ("file.txt", "file.txt has no checkpoints"),
        ("empty", "empty has no checkpoints"),
        ("run", "all 1 checkpoints in"),
        ("run/checkpoints/step-000001", "step-000001 is damaged, incomplete or missing"),
        ("run/checkpoints/step-000002", "step-000002 is damaged, incomplete or missing"),
        ("auto", "--resume auto resumes the run of run.name, which is not set"),
        ("s3://user:password@bucket/run", "--resume=s3://... holds a user, a password or a query"),
        ("zzz://bucket/run", "--resume='zzz://bucket/run': Protocol not known: zzz"),
    ],
)
def test_runs_without_usable_checkpoint_cannot_be_resumed(
    refused: Refused, tmp_path: Path, where: str, expected: str
) -> None:
    (tmp_path / "file.txt").write_text("no run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-000001" / "state.json").write_text("{")
    message = refused(options=("--resume", where))
    assert expected in message
    assert "password@" not in message


def test_run_folders_that_cannot_be_created_are_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("no folder")
    assert "file.txt" in refused("run.output_dir=file.txt", "run.name=x")
    (tmp_path / "taken" / "x").mkdir(parents=True)
    (tmp_path / "taken" / "x" / "config.yaml").write_text("")
    assert "run.name='x'" in refused("run.output_dir=taken", "run.name=x")
    assert "x" * 50 in refused(f"run.output_dir={'x' * 300}", "run.name=x")
    assert "run.output_dir='memory://' names no bucket" in refused("run.output_dir=memory://")
    assert "run.output_dir='zzz://bucket/runs': Protocol not known: zzz" in refused("run.output_dir=zzz://bucket/runs")


# --- secrets ---


@pytest.mark.parametrize(
    "setting", ["run.output_dir", "run.ray_address", "model.path", "model.adapter", "data.source", "tracking.mlflow"]
)
@pytest.mark.parametrize(
    "url", ["https://user:hunter2@host/x", "s3://hunter2@bucket/x", "https://host/x?token=hunter2"]
)
def test_urls_with_secrets_are_refused_and_not_shown(refused: Refused, setting: str, url: str) -> None:
    message = refused(f"{setting}={url}")
    assert f"{setting} holds a user, a password or a query in its URL" in message
    assert "hunter2" not in message


def test_url_without_secrets_is_accepted() -> None:
    from adagrpo_ray.config import Config

    for place in ("s3://bucket/runs", "owner/name", "runs@home", "file:///mnt/a", "https://host:8080/a"):
        assert Config.load(TINY, [f"run.output_dir={place}"]).run.output_dir == place
    with pytest.raises(ConfigError):
        Config.load(TINY, ["run.output_dir=s3://key@bucket/runs"])
