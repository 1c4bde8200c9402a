"""The page of the chat in a browser; one engine serves the tiny model and the adapters of a real run."""

from __future__ import annotations

import json
import re
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.browser import needs_chromium, opened, served, until
from tests.support.held import engines

pytestmark = needs_chromium

FOOTER = re.compile(r"[\d,]+ tokens? · [\d,]+ tokens/s")
STARTS = 240_000  # milliseconds for the start of a model on a busy machine


@pytest.fixture(scope="module")
def runs(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(whole, folder / "first", ignore=shutil.ignore_patterns("tensorboard"))
    return folder


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def url(runs: Path, state: Path) -> Iterator[str]:
    with served(state, "--runs", str(runs), end=signal.SIGINT) as address:
        yield address


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as one:
        ready(one)
        yield one


def ready(page: Any) -> None:
    """Wait until the page shows its settings, which it does after its layout."""
    page.wait_for_function("document.querySelector('#model input')?.value")


ANSWERED = """([before, sides]) => document.querySelector('#message button.submit-button') && sides.every(side =>
    document.querySelectorAll(`#${side}-talk [data-testid=user]`).length > before[side]
    && /tokens\\/s(?! · \\.\\.\\.)/.test(document.querySelector(`#${side}-footer`).innerText))"""


def ask(page: Any, text: str, sides: tuple[str, ...] = ("base", "adapter")) -> None:
    """Send a message, and wait until the sides have answered."""
    before = {side: page.locator(f"#{side}-talk [data-testid=user]").count() for side in sides}
    page.fill("#message textarea", text)
    page.click("#message button.submit-button")
    page.wait_for_function(ANSWERED, arg=[before, list(sides)], timeout=STARTS)


def wait_for(page: Any, place: str, text: str, timeout: int = 30_000) -> None:
    """Wait until the element at `place` contains the text."""
    contains = "([place, text]) => document.querySelector(place)?.innerText.includes(text)"
    page.wait_for_function(contains, arg=[place, text], timeout=timeout)


def talk(page: Any, side: str) -> str:
    """The text on a side, once it is stable: the page shows an answer some time after it received it."""
    texts = [str(page.inner_text(f"#{side}-talk"))]
    while len(texts) < 6 or len(set(texts[-6:])) > 1:
        page.wait_for_timeout(100)
        texts.append(str(page.inner_text(f"#{side}-talk")))
    return texts[-1]


def choose(page: Any, field: str, option: str) -> None:
    page.click(f"#{field} input")
    page.click(f"#{field} [role=option]:has-text('{option}')")


def tick(page: Any, field: str, on: bool) -> None:
    page.set_checked(f"#{field} input[type=checkbox]", on)


def test_start_is_stopped_and_later_answers_are_streamed(page: Any) -> None:
    assert "The model is loaded with the first message" in page.inner_text("#note")
    page.fill("#message textarea", "12+34")
    page.click("#message button.submit-button")
    wait_for(page, "#note", "starting the model tiny")
    page.click("#message button.stop-button")
    page.wait_for_selector("#message button.submit-button")
    assert page.inner_text("#base-footer") == page.inner_text("#adapter-footer") == "stopped"
    page.evaluate(
        """() => { window.lengths = new Set();
        const talk = document.querySelector('#base-talk');
        new MutationObserver(() => window.lengths.add(talk.innerText.length))
            .observe(talk, {subtree: true, childList: true, characterData: true}); }"""
    )
    page.fill("#max-new-tokens input", "400")
    page.fill("#temperature input[type=number]", "2")  # gives long, meaningless answers
    ask(page, "12+34")
    for side in ("base", "adapter"):
        assert FOOTER.match(page.inner_text(f"#{side}-footer"))
        assert "12+34" in talk(page, side)
    assert len(page.evaluate("[...window.lengths]")) > 2


def set_up(page: Any, tokens: int = 96, temperature: str = "0") -> None:
    page.fill("#max-new-tokens input", str(tokens))
    page.fill("#temperature input[type=number]", temperature)
    tick(page, "thinking", True)
    page.click("#view label:has-text('Both')")
    page.fill("#folder textarea, #folder input", "")


def test_adapter_is_switched_without_changing_the_base(page: Any, runs: Path, tmp_path: Path) -> None:
    other = shutil.copytree(runs / "first/adapter", tmp_path / "noise")
    tensors = load_file(other / "adapter_model.safetensors")
    noise = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        tensors[name] = torch.randn(tensor.shape, generator=noise) * 0.3
    save_file(tensors, other / "adapter_model.safetensors")
    set_up(page)
    ask(page, "12+34")
    base, trained = talk(page, "base"), talk(page, "adapter")
    assert "first, end of the run" in trained
    page.click("#clear")
    page.fill("#folder textarea, #folder input", str(other))
    wait_for(page, "#adapter-talk", "noise")
    ask(page, "12+34")
    assert talk(page, "base") == base
    assert talk(page, "adapter").replace("noise", "") != trained.replace("first, end of the run", "")
    page.click("#clear")
    page.fill("#folder textarea, #folder input", "")
    choose(page, "checkpoint", "step 4")
    wait_for(page, "#adapter-talk", "first, step 4")
    ask(page, "12+34")
    # The checkpoint of the last step has the same weights as the adapter of the run.
    assert talk(page, "adapter").replace("step 4", "end of the run") == trained


def test_thinking_off_asks_with_an_ended_thought(page: Any) -> None:
    """At temperature 0 the answer differs only if the prompt does. The rest is the model's choice."""
    set_up(page)
    ask(page, "12+34")
    thinking = talk(page, "base")
    assert "Thought" in thinking
    page.click("#clear")
    tick(page, "thinking", False)
    ask(page, "12+34")
    assert talk(page, "base") != thinking
    page.click("#clear")
    tick(page, "thinking", True)
    ask(page, "12+34")
    assert talk(page, "base") == thinking


def test_answer_may_have_other_parameters_than_the_thought(page: Any) -> None:
    set_up(page)
    assert not page.is_visible("#answer-parameters")
    tick(page, "phases", True)
    page.wait_for_selector("#answer-parameters")
    ask(page, "12+34")
    tick(page, "phases", False)
    page.wait_for_selector("#answer-parameters", state="hidden")


def test_only_the_chosen_side_answers(page: Any) -> None:
    set_up(page)
    page.click("#view label:has-text('Base')")
    page.wait_for_selector("#adapter-side", state="hidden")
    ask(page, "12+34", ("base",))
    page.click("#view label:has-text('Both')")
    page.wait_for_selector("#adapter-side")
    assert "12+34" not in talk(page, "adapter")


def test_conversation_is_saved_cleared_and_loaded(page: Any, state: Path) -> None:
    set_up(page)
    ask(page, "21+43")
    before = talk(page, "base"), talk(page, "adapter")
    page.click("#group-conversations button.label-wrap")
    page.fill("#name textarea, #name input", "sums")
    page.click("#save")
    page.wait_for_function("document.querySelector('#saved input').value == 'sums'")
    kept = json.loads((state / "adagrpo_ray/conversations/sums.json").read_text())
    assert kept["base"][0]["text"] == "21+43"
    page.click("#clear")
    page.wait_for_function("!document.querySelector('#base-talk').innerText.includes('21+43')")
    page.click("#load")
    wait_for(page, "#base-talk", "21+43")
    assert (talk(page, "base"), talk(page, "adapter")) == before


def test_invalid_adapter_is_reported_on_its_side_and_the_base_answers(page: Any, tmp_path: Path) -> None:
    set_up(page)
    page.fill("#folder textarea, #folder input", str(tmp_path))
    ask(page, "12+34", ("base",))
    assert "holds no adapter_config.json" in talk(page, "adapter")
    assert "Traceback" not in page.inner_text("body")
    page.fill("#folder textarea, #folder input", "")
    ask(page, "12+34")  # the failed question is left out
    assert FOOTER.match(page.inner_text("#adapter-footer"))


def test_invalid_model_is_reported_and_the_page_stays_usable(page: Any, tmp_path: Path) -> None:
    set_up(page)
    page.fill("#model input", str(tmp_path / "nothing"))
    page.press("#model input", "Enter")
    wait_for(page, "#base-talk", "nothing")
    page.click("#view label:has-text('Base')")
    page.fill("#message textarea", "12+34")
    page.click("#message button.submit-button")
    wait_for(page, "#base-talk", "neither", timeout=STARTS)
    choose(page, "model", "tiny")
    page.click("#view label:has-text('Both')")
    wait_for(page, "#adapter-talk", "first, end of the run")
    ask(page, "12+34")
    assert FOOTER.match(page.inner_text("#adapter-footer"))


def test_runs_are_followed_while_their_tab_is_shown(page: Any) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))

    def updates(seconds: float) -> bool:
        """Whether the page requests an update within the time."""
        requested.clear()
        page.wait_for_timeout(1000 * seconds)
        return any("/queue/join" in url for url in requested)

    page.click("#runs-tab-button")
    page.wait_for_selector("#runs-curves .legend >> text=first")
    updates(1)  # ignores the requests for the tab itself
    assert updates(4)
    page.click("#chat-tab-button")
    updates(1)
    assert not updates(4)
    page.click("#runs-tab-button")
    updates(1)
    assert updates(4)


@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_its_window(browser: Any, url: str, width: int) -> None:
    with opened(browser, url, width=width) as page:
        ready(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        talk, settings = (page.locator(f"#chat-{part}").bounding_box() for part in ("talk", "settings"))
        if width > 1000:
            assert settings["x"] + settings["width"] <= talk["x"]
            assert page.locator("#message").bounding_box()["y"] < 800 - 50
        else:
            assert talk["y"] + talk["height"] <= settings["y"]


# --- tests with a server of their own, without a model ---


def test_settings_are_restored_and_broken_ones_are_renamed(browser: Any, runs: Path, tmp_path: Path) -> None:
    for start in range(3):
        with served(tmp_path, "--runs", str(runs)) as url, opened(browser, url) as page:
            ready(page)
            temperature = page.input_value("#temperature input[type=number]")
            if start == 0:
                assert temperature == "1"
                page.fill("#temperature input[type=number]", "0.35")
                page.press("#temperature input[type=number]", "Tab")
                choose(page, "checkpoint", "step 3")
                wait_for(page, "#adapter-talk", "first, step 3")
            elif start == 1:
                assert temperature == "0.35"
                assert page.input_value("#checkpoint input") == "step 3"
            else:
                page.wait_for_selector("text=chat.json could not be read")
                assert temperature == "1"
        if start == 1:
            (tmp_path / "adagrpo_ray/chat.json").write_text("{")


def test_no_chat_serves_only_the_runs(browser: Any, runs: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--runs", str(runs), "--no-chat") as url, opened(browser, url) as page:
        page.wait_for_selector("#runs-chosen")
        assert page.locator("#message").count() == 0
        with urllib.request.urlopen(f"{url}/healthz") as health:
            assert json.load(health) == {"ok": True}


def test_other_machines_need_the_password(browser: Any, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    options = ("--runs", str(runs), "--no-chat", "--host", "0.0.0.0", "--password-file", str(tmp_path / "password"))
    with served(tmp_path, *options) as url, opened(browser, url.replace("0.0.0.0", "127.0.0.1")) as page:
        for password in ("guess", "open sesame"):
            page.fill("input[autocomplete=username], label:has-text('username') input", "anyone")
            page.fill("input[type=password]", password)
            page.click("button:has-text('Login')")
            if password == "guess":
                page.wait_for_selector("text=Incorrect")
                assert page.locator("#runs-chosen").count() == 0
        page.wait_for_selector("#runs-chosen")


def test_signal_during_the_start_of_a_model_leaves_no_process(browser: Any, runs: Path, tmp_path: Path) -> None:
    """`served` sends the signal at its end, and checks that the server ends and leaves no process."""
    before = set(engines())
    with served(tmp_path, "--runs", str(runs)) as url, opened(browser, url) as page:
        ready(page)
        page.fill("#message textarea", "12+34")
        page.click("#message button.submit-button")
        wait_for(page, "#note", "starting the model tiny")
        until(lambda: set(engines()) - before, 240)
    assert set(engines()) <= before
