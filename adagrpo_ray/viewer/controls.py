"""The left column of the chat: its controls, and their conversion to settings and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from pydantic import ValidationError

from adagrpo_ray.errors import ChatError
from adagrpo_ray.viewer.offers import Base, Run
from adagrpo_ray.viewer.store import ChatSettings

Updates = dict[Any, Any]
VIEWS = [("Both", "both"), ("Base", "base"), ("Adapter", "adapter")]
NONE = [("none", "")]


class Controls:
    """Gradio's components. The constructor lays them out in the current context. Updates are dicts by component."""

    def __init__(self) -> None:
        with gr.Accordion("Model", elem_id="group-model"):
            self.model = gr.Dropdown(label="Base model", allow_custom_value=True, elem_id="model")
            # Custom values, because the choices change, and Gradio would refuse the earlier value as an unknown choice.
            self.run = gr.Dropdown(label="Run", allow_custom_value=True, elem_id="run")
            self.checkpoint = gr.Dropdown(label="Adapter of the run", allow_custom_value=True, elem_id="checkpoint")
            self.folder = gr.Textbox(
                label="Or the folder of an adapter", placeholder="instead of a run's adapter", elem_id="folder"
            )
            self.view = gr.Radio(VIEWS, label="Answers from", elem_id="view")
            self.refresh = gr.Button("Refresh runs", size="sm", elem_id="refresh")
        with gr.Accordion("Sampling", elem_id="group-sampling"):
            self.temperature = _slider(0, 2, 0.05, "Temperature", "temperature")
            self.top_p = _slider(0.05, 1, 0.01, "Top p", "top-p")
            self.tokens = gr.Number(label="Maximum new tokens", precision=0, elem_id="max-new-tokens")
            self.thinking = gr.Checkbox(label="Think before answering", elem_id="thinking")
            self.phases = gr.Checkbox(label="Other parameters for the answer", elem_id="phases")
            with gr.Column(visible=False, elem_id="answer-parameters") as self.after:
                self.answer_temperature = _slider(0, 2, 0.05, "Temperature of the answer", "answer-temperature")
                self.answer_top_p = _slider(0.05, 1, 0.01, "Top p of the answer", "answer-top-p")
        with gr.Accordion("System prompt", open=False, elem_id="group-system"):
            self.system = gr.Textbox(show_label=False, container=False, lines=4, elem_id="system-prompt")
        with gr.Accordion("Conversations", open=False, elem_id="group-conversations"):
            self.name = gr.Textbox(label="Name", placeholder="default: the current time", elem_id="name")
            self.save = gr.Button("Save", size="sm", elem_id="save")
            self.saved = gr.Dropdown(label="Saved", elem_id="saved")
            self.load = gr.Button("Load", size="sm", elem_id="load")

    @property
    def chosen(self) -> list[Any]:
        """The components whose values are settings."""
        choice = [self.model, self.run, self.checkpoint, self.folder, self.view, self.system]
        sampling = [self.temperature, self.top_p, self.tokens, self.thinking, self.phases]
        return [*choice, *sampling, self.answer_temperature, self.answer_top_p]

    def settings(self, values: Mapping[Any, Any], before: ChatSettings) -> ChatSettings:
        """The settings given by the values of the components; settings without a component are those of `before`.

        Raises ChatError if a value is invalid.
        """
        sampling = {"temperature": values[self.temperature], "top_p": values[self.top_p]}
        answer = {"temperature": values[self.answer_temperature], "top_p": values[self.answer_top_p]}
        try:
            return ChatSettings(
                model=values[self.model] or "",
                run=values[self.run] or "",
                checkpoint=values[self.checkpoint] or "",
                folder=(values[self.folder] or "").strip(),
                view=values[self.view],
                system_prompt=values[self.system] or "",
                thinking=values[self.thinking],
                max_new_tokens=values[self.tokens],
                sampling={**before.sampling.model_dump(), **sampling},
                phases=values[self.phases],
                answer={**before.answer.model_dump(), **answer},
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise ChatError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def show(self, settings: ChatSettings) -> Updates:
        """Show the settings, except model, run and checkpoint."""
        return {
            self.folder: settings.folder,
            self.view: settings.view,
            self.system: settings.system_prompt,
            self.thinking: settings.thinking,
            self.tokens: settings.max_new_tokens,
            self.temperature: settings.sampling.temperature,
            self.top_p: settings.sampling.top_p,
            self.phases: settings.phases,
            self.answer_temperature: settings.answer.temperature,
            self.answer_top_p: settings.answer.top_p,
            self.after: gr.Column(visible=settings.phases),
        }

    def show_models(self, bases: Sequence[Base], chosen: str) -> Updates:
        """Show the base models to choose from, and the chosen one."""
        return {self.model: gr.Dropdown(choices=[base.name for base in bases], value=chosen)}

    def show_runs(self, base: Base, chosen: str) -> Updates:
        """Show the runs of a base model, and the adapters of `chosen`, or of the newest run if `chosen` is unknown."""
        names = [run.name for run in base.runs if run.adapters]
        name = chosen if chosen in names else names[0] if names else ""
        return {self.run: gr.Dropdown(choices=names or NONE, value=name), **self.show_adapters(base.run(name), "")}

    def show_adapters(self, run: Run | None, chosen: str) -> Updates:
        """Show the adapters of a run; select `chosen`, or the last adapter if `chosen` is unknown."""
        names = [] if run is None else list(run.adapters)
        name = chosen if chosen in names else names[0] if names else ""
        return {self.checkpoint: gr.Dropdown(choices=names or NONE, value=name)}


def _slider(least: float, most: float, step: float, label: str, elem_id: str) -> gr.Slider:
    return gr.Slider(least, most, step=step, label=label, buttons=[], elem_id=elem_id)
