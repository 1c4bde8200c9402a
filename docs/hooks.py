"""Pages that mkdocs adds to those of this folder: all settings and all metrics, made from the code, and SECURITY.md."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from adagrpo_ray.config import listing
from adagrpo_ray.runs import metric_table

ROOT = Path(__file__).parents[1]
PAGES = {
    "SECURITY.md": "security.md",
    "adagrpo_ray/config/tree.py": "configuration.md",
    "adagrpo_ray/runs/records.py": "metrics.md",
}
"""Files of the repository that the site has as pages."""
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)(#[^)]*)?\)")  # a link to a file that is not in docs/


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "configuration.md", content=listing.as_markdown()))
    files.append(File.generated(config, "metrics.md", content=metric_table.as_markdown()))
    security = (ROOT / "SECURITY.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "security.md", content=security))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace links to files that are not on the site by the names of these files."""
    return OUTSIDE.sub(_inside, markdown)


def _inside(link: re.Match[str]) -> str:
    text, file, anchor = link[1], link[2], link[3] or ""
    if file in PAGES:
        return f"[{text}]({PAGES[file]}{anchor})"
    return text if text.strip("`") in file else f"{text} (`{file}`)"
