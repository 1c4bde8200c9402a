"""The documentation as a site: it builds strictly, loads nothing from another host, and has every setting."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config as mkdocs_config
from mkdocs.exceptions import Abort

from adagrpo_ray.config.explain import settings
from adagrpo_ray.runs.metric import metrics_of
from adagrpo_ray.runs.records import RECORDS
from tests.support.places import ROOT

LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\ssrc=[\"']?(?P<src>[^\"' >]+)"
    r"|<link\b(?=[^>]*?rel=[\"']?(?:stylesheet|icon|preload|preconnect|modulepreload|dns-prefetch|manifest))"
    r"[^>]*?\shref=[\"']?(?P<href>[^\"' >]+)"
)
STYLE = re.compile(r"(?:@import\s*|url\()\s*[\"']?(?!data:|#)([^\"')]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    build(mkdocs_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def foreign(place: str) -> bool:
    return bool(re.match(r"(?:\w+:)?//", html.unescape(place)))


def test_every_page_of_the_navigation_is_there(site: Path) -> None:
    pages = re.findall(r": (\S+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {"index", "configuration", "metrics", "security"} <= set(pages)
    assert set(pages) | {"404"} == {page.stem for page in site.glob("*.html")}


def test_a_broken_link_stops_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    with (docs / "index.md").open("a") as page:
        page.write("\n[gone](nowhere.md)\n")
    with pytest.raises(Abort, match="1 warnings"):
        build(mkdocs_config(str(ROOT / "mkdocs.yml"), docs_dir=str(docs), site_dir=str(tmp_path / "site")))


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    loaded = {
        (page.name, found["src"] or found["href"])
        for page in site.rglob("*.html")
        for found in LOADED.finditer(page.read_text())
    }
    assert ("index.html", "assets/images/favicon.png") in loaded
    assert len([place for page, place in loaded if page == "index.html" and place.endswith(".js")]) == 1
    assert [each for each in loaded if foreign(each[1])] == []


def test_no_style_loads_anything_from_another_host(site: Path) -> None:
    styles = [style.read_text() for style in site.rglob("*.css")]
    assert styles
    assert [place for style in styles for place in STYLE.findall(style) if foreign(place)] == []
    for figure in site.glob("*.svg"):
        assert [place for place in STYLE.findall(figure.read_text()) if foreign(place)] == []
        assert not re.search(r"href=\"(?!#)", figure.read_text())


def test_no_page_has_what_the_theme_would_fetch_a_program_for(site: Path) -> None:
    """Diagrams of Mermaid, comments and statistics are the parts of the theme that ask other hosts."""
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert 'class="mermaid"' not in text
        assert "googletagmanager" not in text


def test_every_setting_is_on_the_site(site: Path) -> None:
    page = html.unescape((site / "configuration.html").read_text())
    rows = re.findall(r"<tr>\s*<td><code>([^<]+)</code></td>\s*<td><code>(.*?)</code></td>\s*<td>(.*?)</td>", page)
    told = {key: (default, re.sub(r"<[^>]+>", "", text)) for key, default, text in rows}
    for key, default, text in settings():
        assert key in told
        assert told[key][0] == default
        assert told[key][1].replace("\u2019", "'")[:20] == text[:20], key
    assert len(told) == len(list(settings())) > 100


def test_every_metric_has_its_line(site: Path) -> None:
    page = html.unescape((site / "metrics.html").read_text())
    told = re.findall(r"<tr>\s*<td><code>([^<]+)</code></td>\s*<td><code>([^<]+)</code></td>", page)
    assert told == [(metric.name, metric.field) for record in RECORDS for metric in metrics_of(record)]


def test_links_out_of_the_folder_have_become_names_or_pages(site: Path) -> None:
    for page in site.glob("*.html"):
        assert "](" not in re.sub(r"<pre.*?</pre>|<code.*?</code>", "", page.read_text(), flags=re.DOTALL), page.name
        assert not re.search(r'href="\.\./', page.read_text()), page.name
    assert 'href="configuration.html"' in (site / "index.html").read_text()
    assert 'href="security.html"' in (site / "ui.html").read_text()
    assert 'href="metrics.html"' in (site / "tracking.html").read_text()
    assert "<code>adagrpo_ray/algorithm/loss.py</code>" in (site / "method.html").read_text()
