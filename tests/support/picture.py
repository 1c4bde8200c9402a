"""Makes a screenshot of the run viewer: python -m tests.support.picture RUNS [FILE]

Starts launch/ui.py on the run folders in RUNS, opens the newest run in headless Chromium (`make test-ui` installs it),
and saves the window as FILE, by default docs/viewer.png.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.places import ROOT

WIDTH, HEIGHT = 1280, 860


@contextmanager
def served(runs: str, state: str) -> Iterator[str]:
    """Serve the viewer, with its settings in the folder `state`; the context is its URL."""
    command = [sys.executable, "launch/ui.py", "--no-chat", "--port", "0", "--runs", runs]
    environment = {**os.environ, "XDG_STATE_HOME": state}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as viewer:
        assert viewer.stdout is not None
        try:
            found = None
            while found is None:
                line = viewer.stdout.readline()
                if not line:
                    raise RuntimeError("launch/ui.py has exited; start it by hand to see its error")
                found = re.search(r"^open (http://\S+)", line)
            yield found[1]
        finally:
            viewer.send_signal(signal.SIGTERM)
            viewer.wait()


def take(url: str, file: Path) -> None:
    """Save a screenshot with the curves of the newest run."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(url)
        page.wait_for_selector("#runs-curves figure polyline")
        page.wait_for_selector("#groups-list tr[data-at]")
        page.screenshot(path=str(file))
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", help="a folder of run folders")
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "docs" / "viewer.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as state, served(os.path.abspath(options.runs), state) as url:
        take(url, options.file)
    print(options.file)


if __name__ == "__main__":
    main()
