"""The logic of the chat: prompts, thoughts, streams, saved settings and conversations, and offered models."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.config import Config
from adagrpo_ray.config.listing import as_yaml
from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.errors import ChatError, ModelError, RolloutError
from adagrpo_ray.rollout.streaming import Piece
from adagrpo_ray.toy.tokenizer import build_tokenizer
from adagrpo_ray.types import SamplingParams
from adagrpo_ray.viewer.chat_model import _stamp
from adagrpo_ray.viewer.conversation import SIDES, Conversation, Message, render, sampling_params, split_thought
from adagrpo_ray.viewer.offers import FINAL, Base, adapter_of, default_config, offers, other_base
from adagrpo_ray.viewer.store import ChatSettings, Store
from adagrpo_ray.viewer.turn import Question, _served_rank, grow, turn
from tests.support.places import TINY
from tests.support.small_adapter import save_adapter

END = "</think>"


# --- prompts ---


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(Config().data.format)


def talk(*texts: str) -> tuple[Message, ...]:
    """Messages with these texts, of the user and the assistant in turn."""
    roles = ("user", "assistant")
    return tuple(Message(role=roles[n % 2], text=text) for n, text in enumerate(texts))  # type: ignore[arg-type]


def prompt(tokenizer: Any, messages: tuple[Message, ...], system: str = "", thinking: bool = True) -> str:
    rendered = render(tokenizer, messages, system, thinking, END)
    return str(tokenizer.decode(rendered.token_ids))


def test_prompt_is_rendered_by_the_chat_template(tokenizer: Any) -> None:
    assert prompt(tokenizer, talk("1+1", "2", "and 2+2"), system="be short") == (
        "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nand 2+2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_thinking_off_appends_the_end_of_a_thought(tokenizer: Any) -> None:
    assert prompt(tokenizer, talk("1+1"), thinking=False) == prompt(tokenizer, talk("1+1")) + END


SWITCH = "{% for m in messages %}{{ m.content }};{% endfor %}{{ '<think>\n' if enable_thinking else 'no thought' }}"


@pytest.mark.parametrize(
    ("thinking", "text", "thinks"), [(True, "1+1;<think>\n", True), (False, "1+1;no thought", False)]
)
def test_thinking_uses_the_switch_of_the_template(thinking: bool, text: str, thinks: bool) -> None:
    tokenizer = build_tokenizer(Config().data.format)
    tokenizer.chat_template = SWITCH
    rendered = render(tokenizer, talk("1+1"), "", thinking, END)
    assert tokenizer.decode(rendered.token_ids) == text
    assert rendered.thinks is thinks


def test_failed_questions_are_left_out_of_the_prompt(tokenizer: Any) -> None:
    failed = (Message(role="user", text="lost"), Message(role="assistant", text="no such adapter", end="failed"))
    assert prompt(tokenizer, (*failed, *talk("1+1"))) == prompt(tokenizer, talk("1+1"))


def test_error_of_a_template_is_reported() -> None:
    tokenizer = build_tokenizer(Config().data.format)
    tokenizer.chat_template = "{{ raise_exception('no system messages here') }}"
    with pytest.raises(ChatError, match="chat template refuses this: no system messages here"):
        render(tokenizer, talk("1+1"), "be short", True, END)


def test_template_that_omits_the_system_message_is_refused() -> None:
    tokenizer = build_tokenizer(Config().data.format)
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ChatError, match="leaves out 'be short' of the system message"):
        render(tokenizer, talk("1+1"), "be short", True, END)


@pytest.mark.parametrize(
    ("text", "thinks", "thought", "answer"),
    [
        ("", False, None, None),
        ("just an answer", False, None, "just an answer"),
        ("<thi", False, None, "<thi"),
        ("<think>1+", False, "1+", None),
        ("<think>1+1</think>", False, "1+1", None),
        ("<think>1+1</think>\n2", False, "1+1", "2"),
        ("1+1</think>2", False, "1+1", "2"),
        ("1+", True, "1+", None),
        ("</think>2", True, None, "2"),
        ("<think>a</think>b</think>c", False, "a", "b</think>c"),
    ],
)
def test_split_thought_separates_thought_and_answer(
    text: str, thinks: bool, thought: str | None, answer: str | None
) -> None:
    assert split_thought(text, END, thinks) == (thought, answer)


def test_parameters_of_the_answer_apply_from_the_start_without_a_thought() -> None:
    hot, cool = PhaseParams(temperature=1.3), PhaseParams(temperature=0.2, top_p=0.9)
    assert sampling_params(hot, None, True) == SamplingParams(temperature=1.3)
    both = SamplingParams(temperature=1.3, answer=SamplingParams(temperature=0.2, top_p=0.9))
    assert sampling_params(hot, cool, True) == both
    assert sampling_params(hot, cool, False) == SamplingParams(temperature=0.2, top_p=0.9)


def test_answered_replaces_the_answer_of_its_side() -> None:
    before = Conversation().ask("1+1", ("base", "adapter")).ask("2+2", ("adapter",))
    assert [m.text for m in before.base] == ["1+1"]
    first = before.answered({"adapter": Message(role="assistant", text="4")})
    again = first.answered({"adapter": Message(role="assistant", text="4, of course")})
    assert [m.text for m in again.adapter] == ["1+1", "2+2", "4, of course"]
    assert again.base == before.base


def test_footer_has_tokens_speed_and_end() -> None:
    assert Message(role="assistant", text="x", tokens=1200, seconds=2.0, end="length").footer() == (
        "1,200 tokens · 600 tokens/s · cut off"
    )
    assert Message(role="assistant", text="", end="failed").footer() == "failed"
    assert Message(role="assistant", text="x", tokens=1, seconds=0.5, end="stop").footer() == "1 token · 2 tokens/s"
    assert Message(role="assistant", text="x", tokens=3, seconds=1.5).footer() == "3 tokens · 2 tokens/s · ..."


# --- answers that grow ---


async def pieces(*texts: str, end: str | None = "stop", closed: list[str] | None = None) -> AsyncGenerator[Piece, None]:
    try:
        for number, text in enumerate(texts):
            await asyncio.sleep(0)
            yield Piece(text, 1, end if number == len(texts) - 1 else None)
    finally:
        if closed is not None:
            closed.append("closed")


async def endless(closed: list[str]) -> AsyncGenerator[Piece, None]:
    try:
        while True:
            await asyncio.sleep(0)
            yield Piece("x", 1, None)
    finally:
        closed.append("closed")


async def failing() -> AsyncGenerator[Piece, None]:
    yield Piece("so f", 1, None)
    raise RolloutError("the engine is gone")


def test_grow_yields_both_answers_to_their_ends() -> None:
    async def run() -> list[dict[str, Message]]:
        return [dict(a) async for a in grow({"base": pieces("a", "b"), "adapter": pieces("c")}, asyncio.Event())]

    last = asyncio.run(run())[-1]
    assert {side: (m.text, m.tokens, m.end) for side, m in last.items()} == {
        "base": ("ab", 2, "stop"),
        "adapter": ("c", 1, "stop"),
    }


def test_failing_side_does_not_affect_the_other() -> None:
    async def run() -> dict[str, Message]:
        return [dict(a) async for a in grow({"base": pieces("a", "b"), "adapter": failing()}, asyncio.Event())][-1]

    last = asyncio.run(run())
    assert (last["base"].text, last["base"].end) == ("ab", "stop")
    assert (last["adapter"].text, last["adapter"].end) == ("the engine is gone", "failed")


def test_stop_ends_growing_answers_and_keeps_their_text() -> None:
    closed: list[str] = []

    async def run() -> dict[str, Message]:
        stop, last = asyncio.Event(), {}
        async for answers in grow({"base": endless(closed), "adapter": pieces("c")}, stop):
            last = dict(answers)
            if last["base"].tokens > 2:
                stop.set()
        return last

    last = asyncio.run(run())
    assert last["base"].end == "stopped"
    assert set(last["base"].text) == {"x"}
    assert last["adapter"].end == "stop"
    assert closed == ["closed"]


def test_closed_page_closes_its_streams() -> None:
    closed: list[str] = []

    async def run() -> None:
        async with aclosing(grow({"base": endless(closed)}, asyncio.Event())) as growing:
            async for answers in growing:
                if answers["base"].tokens:
                    break

    asyncio.run(run())
    assert closed == ["closed"]


# --- turns, with a fake engine ---


class Engine:
    """Replaces ChatModel, and records its calls."""

    def __init__(self, tokenizer: Any, start: Callable[[], Any] = lambda: asyncio.sleep(0)) -> None:
        self.lock, self.tokenizer, self._start = asyncio.Lock(), tokenizer, start
        self.calls: list[Any] = []

    def serves(self, base: Any, rank: int) -> bool:
        return ("serve", base.name, rank) in self.calls

    async def serve(self, base: Any, rank: int) -> None:
        await self._start()
        self.calls.append(("serve", base.name, rank))

    async def use(self, path: Path, base: Any) -> None:
        self.calls.append(("use", path))

    async def stream(self, side: str, prompt: Any, sampling: Any, most: int) -> AsyncGenerator[Piece, None]:
        self.calls.append((side, sampling, most))
        async for piece in pieces(f"{side} ", "speaks"):
            yield piece


def ask(engine: Engine, adapter: Path | None, stop: bool = False, **settings: Any) -> list[tuple[Conversation, str]]:
    """Run one turn to its end; all conversations and statuses that it yields."""

    async def run() -> list[tuple[Conversation, str]]:
        base = other_base("a/b", Config.load(TINY))
        question = Question("1+1", ChatSettings(model="a/b", **settings), base, adapter, "an adapter")
        stopped, steps = asyncio.Event(), []
        async for step in turn(engine, Conversation(), question, stopped):  # type: ignore[arg-type]
            steps.append(step)
            if stop and step[1]:
                stopped.set()
        return steps

    return asyncio.run(run())


def last_answers(steps: list[tuple[Conversation, str]]) -> dict[str, tuple[str, str]]:
    """Text and end of the last answer on each side."""
    return {side: (messages[-1].text, messages[-1].end) for side in SIDES if (messages := steps[-1][0].on(side))}


def test_turn_starts_the_model_and_answers_on_both_sides(tokenizer: Any, trained: Path) -> None:
    engine = Engine(tokenizer)
    steps = ask(engine, trained / "adapter", max_new_tokens=50)
    assert "starting the model a/b ..." in [status for _, status in steps]
    assert engine.calls[:2] == [("serve", "a/b", 16), ("use", trained / "adapter")]
    assert {call[0] for call in engine.calls[2:]} == {"base", "adapter"}
    assert last_answers(steps) == {"base": ("base speaks", "stop"), "adapter": ("adapter speaks", "stop")}
    assert [answer.by for answer in (steps[-1][0].base[-1], steps[-1][0].adapter[-1])] == ["a/b", "an adapter"]


@pytest.mark.parametrize(("adapter", "message"), [(None, "no adapter is chosen"), (Path("gone"), "is no folder")])
def test_base_answers_if_no_adapter_can_be_used(tokenizer: Any, adapter: Path | None, message: str) -> None:
    answers = last_answers(ask(Engine(tokenizer), adapter))
    assert answers["base"] == ("base speaks", "stop")
    assert message in answers["adapter"][0]
    assert answers["adapter"][1] == "failed"


def test_failed_start_is_the_answer_of_both_sides(tokenizer: Any, trained: Path) -> None:
    async def start() -> None:
        raise ModelError("no such model")

    answers = last_answers(ask(Engine(tokenizer, start), trained / "adapter"))
    assert answers == {"base": ("no such model", "failed"), "adapter": ("no such model", "failed")}


def test_turn_is_stopped_during_the_start_of_the_model(tokenizer: Any) -> None:
    engine = Engine(tokenizer, lambda: asyncio.sleep(3600))
    answers = last_answers(ask(engine, None, stop=True, view="base"))
    assert answers == {"base": ("", "stopped")}
    assert not engine.lock.locked()


# --- saved settings and conversations ---


def test_settings_are_restored(tmp_path: Path) -> None:
    settings = ChatSettings(model="other", view="base", sampling=PhaseParams(temperature=0.3))
    Store(tmp_path / "state").save_settings(settings)
    assert Store(tmp_path / "state").settings(ChatSettings()) == (settings, None)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["chat.json"]


def test_settings_may_be_saved_concurrently(tmp_path: Path) -> None:
    store, default = Store(tmp_path), ChatSettings(model="default")

    def save(size: int) -> tuple[ChatSettings, str | None]:
        store.save_settings(ChatSettings(system_prompt="x" * 10 * size))
        return store.settings(default)

    with ThreadPoolExecutor(8) as pages:
        found = list(pages.map(save, range(200)))
    assert {(settings.model, warning) for settings, warning in found} == {("tiny", None)}
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "tiny", "surprise": 1}', '{"max_new_tokens": -1}', "\xff"])
def test_unreadable_settings_are_renamed_with_a_warning(tmp_path: Path, text: str) -> None:
    (tmp_path / "chat.json").write_text(text, encoding="latin-1")
    settings, warning = Store(tmp_path).settings(ChatSettings(model="default"))
    assert settings == ChatSettings(model="default")
    assert warning is not None
    assert "chat.json could not be read" in warning
    assert (tmp_path / "chat.bad").read_text(encoding="latin-1") == text
    assert Store(tmp_path).settings(ChatSettings())[1] is None


def test_conversations_are_listed_newest_first_and_read_back(tmp_path: Path) -> None:
    store, conversation = Store(tmp_path), Conversation().ask("1+1 ü", ("base",))
    store.save("one", Conversation())
    store.save("one", conversation)
    store.save("two (b)", Conversation())
    for newest, oldest in (("one", "two (b)"), ("two (b)", "one")):
        os.utime(tmp_path / f"conversations/{newest}.json", (2e9, 2e9))
        os.utime(tmp_path / f"conversations/{oldest}.json", (1e9, 1e9))
        assert store.names() == [newest, oldest]
    assert store.load("one") == conversation


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 81, "a\0"])
def test_names_of_conversations_cannot_be_paths(tmp_path: Path, name: str) -> None:
    for use in (lambda: Store(tmp_path).load(name), lambda: Store(tmp_path).save(name, Conversation())):
        with pytest.raises(ChatError, match="cannot be a name"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_missing_or_broken_conversation_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ChatError, match="there is no conversation 'gone' any more"):
        store.load("gone")
    store.save("broken", Conversation())
    (tmp_path / "conversations/broken.json").write_text('{"base": 5}')
    with pytest.raises(ChatError, match=r"broken\.json is no conversation \(base: "):
        store.load("broken")


def test_failed_save_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conversations").write_text("a file where the folder goes")
    with pytest.raises(ChatError, match="cannot write"):
        Store(tmp_path).save("one", Conversation())


# --- offered models and adapters ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an adapter and two checkpoints."""
    folder = tmp_path_factory.mktemp("trained") / "first"
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    (folder / "config.yaml").write_text(as_yaml(Config.load(TINY)))
    save_adapter(folder / "adapter")
    arrays = {name: t.numpy() for name, t in load_file(folder / "adapter/adapter_model.safetensors").items()}
    for step in (3, 4):
        contents = {"adapter.safetensors": arrays, "state.json": {}}
        checkpoint.save(folder / "checkpoints", step, contents, save_total_limit=2, accuracies={3: 0.5})
    return folder


@pytest.fixture
def runs(tmp_path: Path, trained: Path) -> Path:
    """Two runs: one with an adapter and checkpoints, and one of another model without either."""
    shutil.copytree(trained, tmp_path / "runs" / "first")
    other = tmp_path / "runs" / "second"
    other.mkdir()
    (other / "metrics.jsonl").touch()
    (other / "config.yaml").write_text("model: {path: some/model}\nrollout: {max_new_tokens: 77}\n")
    return tmp_path / "runs"


def test_offers_lists_models_runs_and_adapters(runs: Path) -> None:
    tiny, other = offers(str(runs), Config.load(TINY))
    assert (tiny.name, [run.name for run in tiny.runs]) == ("tiny", ["first"])
    assert list(tiny.runs[0].adapters) == [FINAL, "step 4", "step 3 (best)"]
    assert (other.name, other.runs[0].adapters) == ("some/model", {})


def test_base_model_is_offered_without_the_initial_adapter(runs: Path) -> None:
    (runs / "second/config.yaml").write_text("model: {path: some/model, adapter: gone/adapter}\n")
    for base in (*offers(str(runs), Config.load(TINY, ["model.adapter=gone"])), other_base("a/b", Config.load(TINY))):
        assert base.config.model.adapter is None


def test_tiny_models_of_other_settings_are_separate_models(runs: Path) -> None:
    default = Config.load(TINY, ["arithmetic.seed=5"])
    assert [base.name for base in offers(str(runs), default)] == ["tiny", "some/model", "tiny (first)"]


def test_unreadable_run_is_skipped(runs: Path) -> None:
    (runs / "second/config.yaml").write_text("surprise: 1\n")
    assert [base.name for base in offers(str(runs), Config.load(TINY))] == ["tiny"]


def test_default_model_is_that_of_the_newest_run(runs: Path, tmp_path: Path) -> None:
    assert default_config(str(runs), None, [], Path(TINY)).model.path == "some/model"
    assert default_config(str(runs), TINY, ["run.seed=3"], Path(TINY)).run.seed == 3
    assert default_config(str(tmp_path / "nothing"), None, [], Path(TINY)).model.path == "tiny"
    (runs / "second/config.yaml").write_text("surprise: 1\n")
    assert default_config(str(runs), None, [], Path(TINY)).model.path == "tiny"


def test_other_model_is_served_without_trusting_its_code() -> None:
    config = Config.load(TINY, ["model.trust_remote_code=true"])
    base = other_base("a/b", config)
    assert base.config.model.trust_remote_code is False
    assert (base.config.model.path, base.config.rollout, base.runs) == ("a/b", config.rollout, ())


@pytest.mark.parametrize(
    ("folder", "path"), [("/a/b", "/a/b"), ("~/b", "/home/me/b"), ("~", "/home/me"), ("~no-one/b", "~no-one/b")]
)
def test_adapter_folder_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, folder: str, path: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    base = Base("tiny", Config.load(TINY))
    assert adapter_of(ChatSettings(folder=folder), base) == (Path(path), Path(folder).name)


@pytest.mark.parametrize(("r", "rank"), [(1, 1), (12, 16), (256, 256), (257, None)])
def test_rank_of_an_adapter_is_served_or_refused(trained: Path, tmp_path: Path, r: int, rank: int) -> None:
    folder = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "r": r}))
    if rank is not None:
        assert _served_rank(folder) == rank
        return
    with pytest.raises(ModelError, match=r"has r=257; choose one of a rank of up to 256"):
        _served_rank(folder)


def test_stamp_of_an_adapter_changes_with_its_file(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = _stamp(run / "adapter")
    assert before == _stamp(run / "adapter") != _stamp(run / "checkpoints/step-000004")
    (run / "adapter/adapter_model.safetensors").write_bytes(b"another")
    assert _stamp(run / "adapter") != before
    with pytest.raises(ModelError, match=r"holds no adapter\.safetensors any more"):
        _stamp(run / "checkpoints/step-000007")
