"""Starts launch/ui.py as a program, and a headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.program import ENDING_S, children, title

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here; `make test-ui` installs it")


@contextmanager
def served(state: Path, *arguments: str, end: int = signal.SIGTERM) -> Iterator[str]:
    """Serve the pages with their state in a folder; the context is the URL.

    Sends the signal `end` at the end, and checks that the server exits with 0 and leaves no process.
    """
    command = [sys.executable, "launch/ui.py", "--port", "0", *arguments]
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as ui:
        assert ui.stdout is not None
        try:
            line = ""
            while not line.startswith("open "):
                line = ui.stdout.readline()
                assert line, "the server has ended"
            yield re.findall(r"http://\S+", line)[0]
            started = children(ui)
            ui.send_signal(end)
            assert ui.wait(timeout=ENDING_S) == 0
            _, left = psutil.wait_procs(started, timeout=ENDING_S)
            assert [title(process) for process in left] == []
            assert "Traceback" not in ui.stdout.read().partition("ended\n")[2]
        finally:
            ui.kill()


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, url: str, width: int = 1280, height: int = 800) -> Iterator[Any]:
    """Open a page in a new window; checks at the end that it loaded nothing from other servers and raised no error."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    requested, errors = [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(url)
        yield page
        foreign = [address for address in requested if not address.startswith((url, "data:", "blob:"))]
        assert not foreign, foreign
        assert not errors, errors
    finally:
        context.close()


def until(true: Any, seconds: float = 30) -> None:
    """Wait until `true()` returns a true value."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"still false after {seconds:g} s"
        time.sleep(0.1)
