"""The page of the chat: base model and adapter side by side, with one text box for both."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from adagrpo_ray.config import Config
from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.data.chat import system_message
from adagrpo_ray.errors import AdaGRPOError, ChatError
from adagrpo_ray.viewer.chat_model import ChatModel
from adagrpo_ray.viewer.controls import Controls, Updates
from adagrpo_ray.viewer.conversation import SIDES, Conversation, Message, Side, split_thought
from adagrpo_ray.viewer.offers import Base, adapter_of, offers, other_base
from adagrpo_ray.viewer.store import ChatSettings, Store
from adagrpo_ray.viewer.turn import Question, RunningTurn

LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Without the queue: at the end of one event the browser closes the stream, on which the next one may just arrive.
AT_ONCE = {**QUIET, "queue": False}


class ChatPage:
    """The chat with the models of the runs in a folder; `default` has the model that is offered first."""

    def __init__(self, runs: str, default: Config, store: Store) -> None:
        self._runs, self._default, self._store = runs, default, store
        self._model = ChatModel()
        self._turns: dict[str, RunningTurn] = {}  # session -> its last turn

    @property
    def starting(self) -> bool:
        """Whether the engine is starting, as `ChatModel.starting`."""
        return self._model.starting

    async def close(self) -> None:
        """Stop the engine."""
        await self._model.stop()

    def build(self, pages: gr.Blocks) -> None:
        """Lay out the page, which is a part of `pages`, and connect its events."""
        self._conversation = gr.State(Conversation())
        self._bots: dict[Side, gr.Chatbot] = {}
        self._footers: dict[Side, gr.Markdown] = {}
        self._columns: dict[Side, gr.Column] = {}
        with gr.Row(elem_id="chat"):
            with gr.Column(scale=1, min_width=260, elem_id="chat-settings"):
                c = self._controls = Controls()
            with gr.Column(scale=4, min_width=320, elem_id="chat-talk"):
                with gr.Row(elem_id="chat-sides"):
                    for side in SIDES:
                        with gr.Column(min_width=260, elem_id=f"{side}-side") as self._columns[side]:
                            self._bots[side] = _chatbot(side)
                            self._footers[side] = gr.Markdown(elem_id=f"{side}-footer", elem_classes="footer")
                with gr.Row(equal_height=True, elem_id="chat-status"):
                    self._note = gr.Markdown("The model is loaded with the first message.", elem_id="note")
                    clear = gr.Button("Clear", size="sm", scale=0, min_width=90, elem_id="clear")
                self._box = gr.Textbox(
                    show_label=False,
                    placeholder="Write a message",
                    lines=1,
                    max_lines=8,
                    autofocus=True,
                    submit_btn="Send",
                    elem_id="message",
                )
        talk = [self._conversation, *self._bots.values(), *self._footers.values()]
        around = [c.after, *self._columns.values(), *self._bots.values()]
        pages.load(self._open, None, [*c.chosen, c.saved, *around], **QUIET)
        pages.unload(self._leave)
        choice = {c.model, c.run, c.checkpoint}
        c.model.input(self._choose_model, choice, choice, **AT_ONCE)
        c.run.input(self._choose_run, choice, choice, **AT_ONCE)
        c.refresh.click(self._refresh, choice, choice, **AT_ONCE)
        changes = [component.change for component in c.chosen]
        gr.on(changes, self._changed, set(c.chosen), [self._note, *around], trigger_mode="always_last", **AT_ONCE)
        inputs = {self._box, self._conversation, *c.chosen}
        sent = self._box.submit(self._send, inputs, [self._box, self._note, *talk], concurrency_limit=None, **QUIET)
        sent.then(self._ready, None, self._box, **QUIET)
        self._box.stop(self._stop, **AT_ONCE)
        clear.click(self._clear, None, talk, **AT_ONCE)
        c.save.click(self._save, {c.name, self._conversation}, [c.name, c.saved], **QUIET)
        c.load.click(self._load, {c.saved, self._conversation}, talk, **QUIET)

    # the settings

    def _open(self) -> Updates:
        """Show a newly opened page: the saved settings, and the current choices."""
        settings, warning = self._store.settings(self._default_settings())
        if warning is not None:
            gr.Warning(warning)
        c, base = self._controls, self._base(settings.model)
        models = c.show_models(self._bases(), settings.model)
        runs = c.show_runs(base, settings.run)
        adapters = c.show_adapters(base.run(settings.run), settings.checkpoint) if base.run(settings.run) else {}
        saved = {c.saved: gr.Dropdown(choices=self._store.names())}
        return {**models, **runs, **adapters, **c.show(settings), **saved, **self._show_sides(settings)}

    def _choose_model(self, values: Updates) -> Updates:
        """Show the runs of the chosen base model."""
        c = self._controls
        return c.show_runs(self._base(values[c.model]), values[c.run])

    def _choose_run(self, values: Updates) -> Updates:
        """Show the adapters of the chosen run."""
        c = self._controls
        return c.show_adapters(self._base(values[c.model]).run(values[c.run]), values[c.checkpoint])

    def _refresh(self, values: Updates) -> Updates:
        """Show the current models, runs and adapters."""
        c = self._controls
        base = self._base(values[c.model])
        models, runs = c.show_models(self._bases(), values[c.model]), c.show_runs(base, values[c.run])
        run = base.run(values[c.run])
        return {**models, **runs, **(c.show_adapters(run, values[c.checkpoint]) if run else {})}

    def _changed(self, values: Updates) -> Updates:
        """Save changed settings, and show the sides and controls that they select."""
        if not values[self._controls.model]:  # the page does not show its settings yet
            return {self._note: gr.skip()}
        try:
            settings = self._settings(values)
            self._store.save_settings(settings)
        except AdaGRPOError as error:
            return {self._note: f"⚠️ {error}"}
        return {self._controls.after: gr.Column(visible=settings.phases), **self._show_sides(settings)}

    def _settings(self, values: Updates) -> ChatSettings:
        return self._controls.settings(values, self._store.settings(self._default_settings())[0])

    def _default_settings(self) -> ChatSettings:
        """The settings at the first start: those of the default model's training."""
        config, base = self._default, self._bases()[0]
        run = next((run for run in base.runs if run.adapters), None)
        sampling = config.evaluation.sampling
        return ChatSettings(
            model=base.name,
            run=run.name if run else "",
            checkpoint=next(iter(run.adapters)) if run else "",
            view="both" if run else "base",
            system_prompt=system_message(config.data) or "",
            thinking=config.data.template_kwargs.get("enable_thinking") is not False,
            max_new_tokens=config.rollout.max_new_tokens,
            sampling=PhaseParams(**sampling.model_dump(exclude={"answer"})),
            phases=sampling.answer is not None,
            **({} if sampling.answer is None else {"answer": sampling.answer}),
        )

    def _bases(self) -> tuple[Base, ...]:
        return offers(self._runs, self._default)

    def _base(self, name: str) -> Base:
        """The base model of this name, or a model that no run trained."""
        return next((base for base in self._bases() if base.name == name), None) or other_base(name, self._default)

    def _show_sides(self, settings: ChatSettings) -> Updates:
        """Show the sides that answer, with their names."""
        names = {"base": settings.model, "adapter": adapter_of(settings, self._base(settings.model))[1]}
        shown = {side: settings.view in (side, "both") for side in SIDES}
        columns = {self._columns[side]: gr.Column(visible=shown[side]) for side in SIDES}
        return {**columns, **{self._bots[side]: gr.Chatbot(label=names[side]) for side in SIDES}}

    # the conversation

    async def _send(self, values: Updates, request: gr.Request) -> AsyncIterator[Updates]:
        """Send the message, and show the answers as they grow."""
        text = (values[self._box] or "").strip()
        if not text:
            return
        try:
            settings = self._settings(values)
        except AdaGRPOError as error:
            gr.Warning(str(error))
            return
        base = self._base(settings.model)
        question = Question(text, settings, base, *adapter_of(settings, base))
        session = str(request.session_hash)
        this = self._turns[session] = RunningTurn(self._model, values[self._conversation], question)
        box: Updates = {self._box: gr.Textbox(value="", submit_btn=False, stop_btn="Stop")}
        async for conversation, status in this.updates():
            if self._turns.get(session) is not this:  # the page shows another conversation now
                return
            yield {**box, self._note: status, **self._show(conversation, base.config.data.format.think_end)}
            box = {}

    def _warned(self, error: AdaGRPOError, output: Any) -> Updates:
        """Show the error, and leave the page unchanged: Gradio requires at least one output."""
        gr.Warning(str(error))
        return {output: gr.skip()}

    def _ready(self) -> gr.Textbox:
        return gr.Textbox(submit_btn="Send", stop_btn=False)

    async def _stop(self, request: gr.Request) -> None:
        """Stop the turn of this page; the answers so far stay."""
        this = self._turns.get(str(request.session_hash))
        if this is not None:
            await this.stop()

    async def _leave(self, request: gr.Request) -> None:
        """Stop the turn of a page that was closed, or that shows another conversation."""
        this = self._turns.pop(str(request.session_hash), None)
        if this is not None:
            await this.stop()

    async def _clear(self, request: gr.Request) -> Updates:
        await self._leave(request)
        return self._show(Conversation(), "")

    def _save(self, values: Updates) -> Updates:
        """Save the conversation under the name given, or under the current time."""
        c = self._controls
        name = (values[c.name] or "").strip() or time.strftime("%Y-%m-%d %H.%M.%S")
        try:
            self._store.save(name, values[self._conversation])
        except AdaGRPOError as error:
            return self._warned(error, c.name)
        gr.Info(f"saved as {name}")
        return {c.name: "", c.saved: gr.Dropdown(choices=self._store.names(), value=name)}

    async def _load(self, values: Updates, request: gr.Request) -> Updates:
        """Replace the conversation by a saved one."""
        name = values[self._controls.saved]
        try:
            if not name:
                raise ChatError("no conversation is chosen; choose one in the list of saved ones")
            conversation = self._store.load(name)
        except AdaGRPOError as error:
            return self._warned(error, self._conversation)
        await self._leave(request)
        return self._show(conversation, self._default.data.format.think_end)

    def _show(self, conversation: Conversation, think_end: str) -> Updates:
        """Show the conversation on both sides."""
        bots = {self._bots[side]: _rows(conversation.on(side), think_end) for side in SIDES}
        footers = {self._footers[side]: _footer(conversation.on(side)) for side in SIDES}
        return {self._conversation: conversation, **bots, **footers}


def _chatbot(side: Side) -> gr.Chatbot:
    return gr.Chatbot(
        height="calc(100vh - 230px)",
        min_height=220,
        label=side,
        latex_delimiters=LATEX,
        buttons=[],
        feedback_options=None,
        elem_id=f"{side}-talk",
    )


def _rows(messages: tuple[Message, ...], think_end: str) -> list[dict[str, Any]]:
    """Messages in Gradio's format. A thought is a row of its own, which can be folded."""
    rows: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "user":
            rows.append({"role": "user", "content": message.text})
        elif message.end == "failed":
            rows.append({"role": "assistant", "content": f"⚠️ {message.text}"})
        else:
            thought, answer = split_thought(message.text, think_end, message.thinks)
            if thought is not None:
                pending = answer is None and not message.end
                status = {"status": "pending"} if pending else {}
                rows.append({"role": "assistant", "content": thought, "metadata": {"title": "Thought", **status}})
            if answer is not None:
                rows.append({"role": "assistant", "content": answer})
    return rows


def _footer(messages: tuple[Message, ...]) -> str:
    """The footer of the last answer; "" if there is none."""
    return messages[-1].footer() if messages and messages[-1].role == "assistant" else ""
