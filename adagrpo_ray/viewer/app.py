"""Assembles the pages as one application, and serves it."""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from adagrpo_ray.viewer import runs_page
from adagrpo_ray.viewer.guard import Guard

if TYPE_CHECKING:
    from adagrpo_ray.viewer.chat_page import ChatPage

TITLE = "adagrpo_ray"
STYLE = Path(__file__).with_name("style.css")
GRACE_S = 2
"""Seconds for open connections at the end: an open page never closes its connection."""


def make_app(runs: str, chat: ChatPage | None, password: str | None, hosts: Sequence[str] | None) -> FastAPI:
    """The application with the page of the runs in the folder `runs`, and with the chat unless `chat` is None.

    password: required to open a page; None for no password.
    hosts: host names under which requests are answered; None for any.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as pages:
        chat_tab = None
        if chat is not None:
            with gr.Tab("Chat", elem_id="chat-tab") as chat_tab:
                chat.build(pages)
        with gr.Tab("Runs", elem_id="runs-tab") as runs_tab:
            runs_page.build(runs, runs_tab, chat_tab)
    app = FastAPI(title=TITLE, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        return {"ok": True}

    app.add_middleware(Guard, hosts=hosts)
    gr.mount_gradio_app(
        app,
        pages,
        path="/",
        auth=None if password is None else (lambda user, given: hmac.compare_digest(given.encode(), password.encode())),
        auth_message="The password is in the file given as --password-file; any user name is accepted.",
        theme=_theme(),
        css_paths=STYLE,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
    )
    return app


async def serve(app: FastAPI, listening: socket, chat: ChatPage | None) -> None:
    """Serve until SIGINT or SIGTERM, then stop the chat's engine."""
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=GRACE_S)
    try:
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        if chat is not None:
            await chat.close()


def _theme() -> Any:
    """Gradio's default theme with system fonts, so that no font is downloaded."""
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    return gr.themes.Default(font=fonts, font_mono=("ui-monospace", "monospace"), radius_size="sm", spacing_size="sm")
