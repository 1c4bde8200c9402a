"""Saves a screenshot of the run viewer: python -m tests.support.picture RUNS [FILE]

RUNS is a folder of run folders, of which the newest is shown. FILE is docs/viewer.png by default.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from tests.support.browser import chromium, opened, served
from tests.support.places import ROOT

WIDTH, HEIGHT = 1280, 680


def take(runs: str, file: Path) -> None:
    """Save the page of the newest run, with its curves and groups."""
    with (
        tempfile.TemporaryDirectory() as state,
        served(Path(state), "--no-chat", "--runs", os.path.abspath(runs)) as url,
        chromium() as browser,
        opened(browser, url, WIDTH, HEIGHT) as page,
    ):
        page.wait_for_selector("#runs-curves figure polyline", timeout=120_000)
        page.wait_for_selector("#groups-list tr[data-at]")
        page.screenshot(path=str(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", help="a folder of run folders")
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "docs" / "viewer.png")
    options = parser.parse_args()
    take(options.runs, options.file)
    print(options.file)


if __name__ == "__main__":
    main()
