"""The site of the documentation: it builds in strict mode, loads nothing from other hosts, and has every setting."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config as mkdocs_config
from mkdocs.exceptions import Abort

from adagrpo_ray.config.listing import settings
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
    """The site, built as by `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    build(mkdocs_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def foreign(place: str) -> bool:
    return bool(re.match(r"(?:\w+:)?//", html.unescape(place)))


def test_site_has_all_pages_of_the_navigation(site: Path) -> None:
    pages = re.findall(r": (\S+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {"index", "configuration", "metrics", "security"} <= set(pages)
    assert set(pages) | {"404"} == {page.stem for page in site.glob("*.html")}


def test_broken_link_stops_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    with (docs / "index.md").open("a") as page:
        page.write("\n[gone](nowhere.md)\n")
    with pytest.raises(Abort, match="1 warnings"):
        build(mkdocs_config(str(ROOT / "mkdocs.yml"), docs_dir=str(docs), site_dir=str(tmp_path / "site")))


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    loaded = {
        (page.name, found["src"] or found["href"])
        for page in site.rglob("*.html")
        for found in LOADED.finditer(page.read_text())
    }
    assert ("index.html", "assets/images/favicon.png") in loaded
    assert len([place for page, place in loaded if page == "index.html" and place.endswith(".js")]) == 1
    assert [each for each in loaded if foreign(each[1])] == []


def test_styles_load_nothing_from_other_hosts(site: Path) -> None:
    styles = [style.read_text() for style in site.rglob("*.css")]
    assert styles
    assert [place for style in styles for place in STYLE.findall(style) if foreign(place)] == []
    for figure in site.glob("*.svg"):
        assert [place for place in STYLE.findall(figure.read_text()) if foreign(place)] == []
        assert not re.search(r"href=\"(?!#)", figure.read_text())


def test_pages_have_no_elements_that_load_programs(site: Path) -> None:
    """The theme would load programs from other hosts for Mermaid diagrams, comments and statistics."""
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert 'class="mermaid"' not in text
        assert "googletagmanager" not in text


def test_site_has_every_setting(site: Path) -> None:
    page = html.unescape((site / "configuration.html").read_text())
    rows = re.findall(r"<tr>\s*<td><code>([^<]+)</code></td>\s*<td><code>(.*?)</code></td>\s*<td>(.*?)</td>", page)
    shown = {key: (default, re.sub(r"<[^>]+>", "", text)) for key, default, text in rows}
    for key, default, text in settings():
        assert key in shown
        assert shown[key][0] == default
        assert shown[key][1].replace("\u2019", "'")[:20] == text[:20], key
    assert len(shown) == len(list(settings())) > 100


def test_site_has_every_metric(site: Path) -> None:
    page = html.unescape((site / "metrics.html").read_text())
    shown = re.findall(r"<tr>\s*<td><code>([^<]+)</code></td>\s*<td><code>([^<]+)</code></td>", page)
    assert shown == [(metric.name, metric.field) for record in RECORDS for metric in metrics_of(record)]


def test_links_out_of_the_docs_folder_are_replaced(site: Path) -> None:
    for page in site.glob("*.html"):
        assert "](" not in re.sub(r"<pre.*?</pre>|<code.*?</code>", "", page.read_text(), flags=re.DOTALL), page.name
        assert not re.search(r'href="\.\./', page.read_text()), page.name
    assert 'href="configuration.html"' in (site / "index.html").read_text()
    assert 'href="security.html"' in (site / "ui.html").read_text()
    assert 'href="metrics.html"' in (site / "tracking.html").read_text()
    assert "<code>adagrpo_ray/algorithm/loss.py</code>" in (site / "method.html").read_text()
