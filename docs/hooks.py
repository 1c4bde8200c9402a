"""What mkdocs adds to the pages of this folder: the settings, out of their models, and SECURITY.md."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from adagrpo_ray.config.explain import as_markdown

ROOT = Path(__file__).parents[1]
REPOSITORY = re.compile(r"\]\((?:\.\./)+([^)#]+)(#[^)]*)?\)")  # a link out of docs/


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are kept elsewhere."""
    files.append(File.generated(config, "configuration.md", content=as_markdown()))
    security = (ROOT / "SECURITY.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "security.md", content=security))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Name files of the repository instead of linking to them: the site does not hold them."""
    markdown = markdown.replace("](../SECURITY.md)", "](security.md)")
    return REPOSITORY.sub(lambda link: f"] (`{link[1]}`)", markdown)
