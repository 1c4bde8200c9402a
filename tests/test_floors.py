"""The house: who may import whom, and how large a file may be. Reads the source, imports nothing of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "adagrpo_ray").rglob("*.py"))
ENGINES = {"ray", "vllm", "deepspeed"}
MODELS = {"peft", "transformers"}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def names_in(node: ast.stmt, module: str) -> Iterator[str]:
    """What an import statement of `module` imports; of `from a import b`, a.b where that is a module, else a."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} has a relative import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in MODULES else str(node.module)


def imports(module: str) -> set[str]:
    """All that `module` imports, wherever in the file."""
    return {name for node in ast.walk(parsed(module)) if isinstance(node, ast.stmt) for name in names_in(node, module)}


def run_on_load(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements in `node` that loading the module runs: none in functions or under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.stmt):
            yield child
        yield from run_on_load(child)


def imports_on_load(module: str) -> set[str]:
    """Modules of the library that are loaded before `module`: what it imports at once, with their packages."""
    names = {name for node in run_on_load(parsed(module)) for name in names_in(node, module)}
    with_packages = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
    return {n for n in with_packages if n in MODULES and not f"{module}.".startswith(f"{n}.")}


def reached(module: str) -> set[str]:
    """The library's modules that loading `module` loads, itself included."""
    seen: set[str] = set()
    to_see = [module]
    while to_see:
        here = to_see.pop()
        if here not in seen:
            seen.add(here)
            to_see += imports_on_load(here)
    return seen


def offences(module: str, forbidden: set[str]) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] in forbidden}


def under(*names: str) -> list[str]:
    """Modules of the library that are one of `names` or lie in it."""
    wholes = tuple(f"adagrpo_ray.{name}" for name in names)
    found = [m for m in MODULES if m in wholes or m.startswith(tuple(f"{w}." for w in wholes))]
    assert all(any(f"{m}.".startswith(f"{w}.") for m in found) for w in wholes), f"one of {wholes} is gone"
    return found


GROUND = under("algorithm", "types", "config", "errors", "extension", "given", "stop", "placement", "storage", "cache")
PURE_LEARNER = under(
    "learner.sampler",
    "learner.packing",
    "learner.batch",
    "learner.figures",
    "learner.samples",
    "learner.buffers",
    "learner.budget",
)
PURE_EVALUATION = under(*(f"evaluation.{name}" for name in ("figures", "results", "settings", "table", "progress")))


def test_there_is_a_library_to_look_at() -> None:
    assert len(MODULES) > 30
    assert "adagrpo_ray" in MODULES


@pytest.mark.parametrize("module", GROUND)
def test_the_ground_floor_knows_no_engine_and_no_model_library(module: str) -> None:
    assert not offences(module, ENGINES | MODELS)


@pytest.mark.parametrize("module", under("rewards", "data", "model", "adapter", "export", "observe", "report"))
def test_what_stands_beside_engines_knows_none(module: str) -> None:
    assert not offences(module, ENGINES)


@pytest.mark.parametrize("module", PURE_LEARNER)
def test_the_learners_logic_knows_no_engine(module: str) -> None:
    assert not offences(module, ENGINES)


@pytest.mark.parametrize("module", PURE_EVALUATION)
def test_what_comes_of_a_measurement_knows_no_engine(module: str) -> None:
    assert not offences(module, ENGINES)


@pytest.mark.parametrize("module", [*GROUND, *PURE_LEARNER, *PURE_EVALUATION])
def test_nor_does_anything_that_they_load(module: str) -> None:
    assert not {(m, name) for m in reached(module) for name in offences(m, ENGINES)}


@pytest.mark.parametrize("module", GROUND)
def test_the_ground_floor_stands_on_nothing_above_it(module: str) -> None:
    assert {name for name in imports(module) if name.startswith("adagrpo_ray")} <= {"adagrpo_ray", *GROUND}


def test_trackers_stand_on_top_and_their_packages_are_known_in_one_place_each() -> None:
    tracking, users = set(under("tracking")), {"adagrpo_ray.training.run", "adagrpo_ray.training.preflight"}
    assert {module for module in MODULES if module not in tracking and imports(module) & tracking} == users
    for package in ("wandb", "mlflow"):
        assert {m for m in MODULES if offences(m, {package})} == {f"adagrpo_ray.tracking.{package}_run"}


def test_the_library_knows_no_launch_script_and_no_test() -> None:
    assert not {module: found for module in MODULES if (found := offences(module, {"launch", "tests", "builders"}))}


def test_the_web_application_stands_on_top_and_gradio_is_its_pages_alone() -> None:
    serve = set(under("serve"))
    assert not {m: found for m in MODULES if m not in serve and (found := imports(m) & serve)}
    pages = {"app", "chat_page", "controls", "runs_page"}
    assert {m for m in MODULES if offences(m, {"gradio"})} == {f"adagrpo_ray.viewer.{page}" for page in pages}
    assert not {m: found for m in serve if (found := offences(m, {"ray", "deepspeed"}))}


def test_no_modules_import_each_other_in_a_circle() -> None:
    circle: list[str] = []
    try:
        TopologicalSorter({module: imports_on_load(module) for module in MODULES}).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert not circle


def test_no_file_is_longer_than_350_lines() -> None:
    lines = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in MODULES.items()}
    assert not {module: count for module, count in lines.items() if count > 350}


def test_the_library_prints_nothing() -> None:
    assert not {
        (module, node.lineno)
        for module in MODULES
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }


def test_no_module_is_named_for_what_it_is_not() -> None:
    assert not {m for m in MODULES if {"utils", "util", "manager", "helpers", "misc"} & {*m.split(".")}}
