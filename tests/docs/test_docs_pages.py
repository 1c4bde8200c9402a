"""Messages, settings, metrics and files that the pages name exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from adagrpo_ray.algorithm.overlong import overlong_penalty
from adagrpo_ray.checkpoint.resume import FOLDER
from adagrpo_ray.config import Config
from adagrpo_ray.config.listing import settings
from adagrpo_ray.data.benchmark_sets import BENCHMARKS, BOXED
from adagrpo_ray.rewards import load_reward
from adagrpo_ray.runs.history import EVALUATIONS, METRICS, SAMPLES
from adagrpo_ray.runs.metric import scalars
from tests.support.documents import PAGES, blocks, files
from tests.support.histories import EPISODES, ON_BENCHMARKS, evaluation, step
from tests.support.places import ROOT

DOCS = ROOT / "docs"
SOURCES = [*(ROOT / "adagrpo_ray").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
NAMED = re.compile(rf"((?:{'|'.join(Config.model_fields)})(?:\.\w+)+)(?:=.*)?")
"""A setting, with a value or without."""
HOLE = "\0"
"""Stands for a value in a message."""


def rows(page: str) -> Iterator[list[str]]:
    """Yield the cells of every row of the page's tables, without headings."""
    lines = (DOCS / page).read_text().splitlines()
    for before, line in pairwise(lines):
        if line.startswith("| ") and not line.startswith("| ---") and before.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", cell, flags=re.DOTALL))


# --- troubleshooting.md


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """All texts of the source, with HOLE for each value in them."""
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(p.value) if isinstance(p, ast.Constant) else HOLE for p in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def pattern(message: str) -> re.Pattern[str]:
    """The message as a pattern, in which `...` matches any text and values."""
    return re.compile(".*?".join(map(re.escape, message.split("..."))), re.DOTALL)


def documented(page: str) -> list[str]:
    """The messages in the first column of tables with the heading "message"."""
    inside, found = False, []
    for line in (DOCS / page).read_text().splitlines():
        if line.startswith("| message |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("| ---"):
            found += code(line.split(" | ")[0])
    return found


@pytest.mark.parametrize("page", ["troubleshooting.md", "jobs.md"])
def test_documented_messages_are_in_the_source(page: str, messages: list[str]) -> None:
    listed = [message for message in documented(page) if message != "pending: ..."]  # a message of Ray
    assert len(listed) > (40 if page == "troubleshooting.md" else 3)
    for message in listed:
        assert len(message.replace("...", "")) > 8, message
        assert any(pattern(message).search(text) for text in messages), message


def test_unknown_message_is_not_in_the_source(messages: list[str]) -> None:
    assert not any(pattern("unknown key ... (worth ...)").search(text) for text in messages)


@pytest.mark.parametrize("page", ["environments", "troubleshooting", "glossary"])
def test_documented_metrics_exist(page: str) -> None:
    every_step = replace(step(1), kl=0.1, **EPISODES)
    tags = {*scalars(every_step), *scalars(evaluation(1, 0.5)), *scalars(ON_BENCHMARKS)}
    groups = "|".join({tag.partition("/")[0] for tag in tags if "/" in tag})
    named = [
        text
        for text in code(page_text(page))
        if re.fullmatch(rf"(?:{groups})/[a-z0-9_/]+|frac_reward_zero_std|entropy", text)
    ]
    assert len(named) >= 6
    assert set(named) <= tags


def page_text(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


# --- settings


KEYS = {key for key, _, _ in settings()}


def sections() -> set[str]:
    """All keys that have settings below them."""
    return {key.rpartition(".")[0].removesuffix("[]") for key in KEYS} | {
        key[: dot.start()].removesuffix("[]") for key in KEYS for dot in re.finditer(r"\.", key)
    }


@pytest.mark.parametrize(
    "page",
    [*(page for page in PAGES if page.name != "coming-from.md"), ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda page: page.name,
)
def test_documented_settings_exist(page: Path) -> None:
    known = KEYS | sections()
    for text in code(page.read_text()):
        found = NAMED.fullmatch(text)
        if found is not None and not re.search(r"\.(py|md|json|jsonl|yaml|html)$", found[1]):
            keys = {found[1], re.sub(r"\.\d+", "[]", found[1])}
            parent = found[1].rpartition(".")[0]
            assert keys & known or parent in ("rollout.resources", "learner.resources", "data.template_kwargs"), text


def test_settings_compared_with_those_of_others_exist() -> None:
    compared = 0
    for cells in rows("coming-from.md"):
        names = [name.partition("=")[0] for name in code(cells[0]) if not name.startswith("--")]
        for name in names:
            parents = [names[0].rpartition(".")[0], names[0].partition(".")[0]]
            possible = {name} if "." in name else {f"{parent}.{name}" for parent in parents}
            assert possible & (KEYS | sections()), (name, possible)
            compared += 1
    assert compared > 60


def test_settings_of_trl_exist_in_the_named_version() -> None:
    """TRL's sources are parsed, because importing it takes seconds."""
    fields = set()
    for package, file in (
        ("trl", "trainer/grpo_config.py"),
        ("trl", "trainer/grpo_trainer.py"),
        ("transformers", "training_args.py"),
    ):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse((Path(spec.origin).parent / file).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                fields.add(node.target.id)
            elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
                fields |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    words = {"GRPOTrainer", "PeftModel", "prompt", "train()", "accelerate", "accelerate launch"}
    words |= {"token_truncate", "sequence_truncate", "token_mask", "sequence_mask", "gspo"}
    for cells in rows("coming-from.md"):
        if len(cells) == 4:
            names = {name.partition("=")[0] for name in code(cells[1])} - words
            assert names <= fields, names - fields
    version = re.search(r"^trl==(\d+\.\d+)", (ROOT / "requirements" / "dev.txt").read_text(), re.MULTILINE)
    assert version is not None
    assert f"TRL {version[1]} (" in page_text("coming-from")


# --- benchmarks


def test_table_of_benchmarks_is_the_registry() -> None:
    hub, listed = "https://huggingface.co/datasets", [cells for cells in rows("evaluate.md") if len(cells) == 6]
    wanted = []
    for name, one in BENCHMARKS.items():
        parts = [f"`{part}`" for part in (one.subset, one.split) if part is not None]
        place = ", ".join([f"[{one.repository}]({hub}/{one.repository})", *parts]) + ("; gated" if one.gated else "")
        classes = [column for column in one.optional if column != "context"]
        wanted.append(
            [
                *(f"`{name}`", place, one.licence, f"[source]({one.source})", str(one.samples)),
                f"`{classes[0]}`" if classes else "-",
            ]
        )
    assert listed == wanted


def test_page_quotes_the_directive_of_the_prompts() -> None:
    assert f"`{BOXED}`" in " ".join(page_text("evaluate").split())


# --- complete files and configurations


def test_quick_start_gives_the_documented_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "".join("".join(blocks(DOCS / "index.md", language)) for language in ("json", "python", "yaml"))
    assert len(shown.splitlines()) <= 20
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    config = Config.load("mine.yaml")
    assert config.data.columns.ground_truth == "answer"
    assert load_reward(config.rewards.functions[0].function)(completions=["short", "x" * 9999], answer="1") == [
        1.0,
        0.0,
    ]


def test_yaml_blocks_are_valid_settings() -> None:
    trees = [yaml.safe_load(block) for page in PAGES for block in blocks(page, "yaml")]
    parts = [tree for tree in trees if set(tree) <= set(Config.model_fields)]
    assert parts
    for tree in parts:
        Config.model_validate(tree)  # raises if it is invalid


@pytest.mark.parametrize("name", ["local-1gpu", "local-1gpu-24gb"])
def test_published_rule_is_that_of_the_configurations_for_one_gpu(name: str) -> None:
    section = (DOCS / "adaptive.md").read_text(encoding="utf-8").partition("## The published rule\n")[2]
    block = section.partition("```yaml\n")[2].partition("```")[0]
    shown, config = Config.model_validate(yaml.safe_load(block)), Config.load(f"launch/configs/{name}.yaml")
    assert (shown.algorithm, shown.rewards) == (config.algorithm, config.rewards)


def test_files_of_a_run_folder_are_documented() -> None:
    named = {name.rstrip("/") for cells in rows("index.md") for name in code(cells[0])}
    assert named >= {EVALUATIONS, METRICS, SAMPLES, FOLDER, "adapter", "config.yaml", "summary.json", "tensorboard"}


def test_numbers_of_worked_examples_are_correct() -> None:
    text = page_text("method")
    assert "lengths of 80, 90 and 100 get 0, " in text
    assert overlong_penalty([80, 90, 100], 100, 20).tolist() == [0.0, -0.5, -1.0]
    assert sum(1 - p**5 - (1 - p) ** 5 >= 0.9 for p in (0.5,)) == 1
    assert 1 - 0.1**22 - 0.9**22 >= 0.9 > 1 - 0.1**21 - 0.9**21
    assert "5 completions at p = 0.5, and 22 at p = 0.1" in text


def test_files_of_the_algorithm_are_documented() -> None:
    text = page_text("method")
    for path in (ROOT / "adagrpo_ray" / "algorithm").glob("*.py"):
        if path.name not in ("__init__.py", "own_ladder.py"):
            assert f"`adagrpo_ray/algorithm/{path.name}`" in text
            defined = (node for node in ast.parse(path.read_text()).body)
            names = {n.name for n in defined if isinstance(n, ast.FunctionDef | ast.ClassDef)}
            assert any(f"`{name}`" in text for name in names), path


# --- links and files


@pytest.mark.parametrize(
    "page", [*PAGES, *(ROOT / f"{name}.md" for name in ("SECURITY", "CONTRIBUTING", "CHANGELOG"))], ids=lambda p: p.name
)
def test_links_and_files_on_pages_exist(page: Path) -> None:
    text = page.read_text()
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for place in re.findall(r"\]\(([^)\s]+)\)", plain):
        if not re.match(r"\w+:", place):
            file, _, anchor = place.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), place
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in {
                re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings
            }, place
    for file in re.findall(r"`((?:launch|docs|tests|adagrpo_ray|cluster|docker|requirements)/[\w./-]*\w)`", text):
        assert (ROOT / file).exists() or file.startswith("docker/secrets/"), file  # made by make cluster-up


def test_pages_are_in_the_navigation_and_the_readme() -> None:
    navigation, readme = (ROOT / "mkdocs.yml").read_text(), (ROOT / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert f": {page.name}\n" in navigation, page.name
        assert f"](docs/{page.name})" in readme, page.name


def test_readme_is_short_and_begins_with_the_commands() -> None:
    """The README has three commands of make first, then the example, and links to everything else."""
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    first = next(blocks(ROOT / "README.md", "bash"))
    assert re.findall(r"^make ([\w-]+)", first, re.MULTILINE) == ["train", "test", "train-real"]
    links = re.findall(r"\]\((docs/[^)]+)\)", readme)
    assert links[0] == "docs/examples/one_process.py"
