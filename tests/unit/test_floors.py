"""The layers of the library: the order of its packages, and the size of its files. Reads the source, imports none."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.places import ROOT

FILES = sorted((ROOT / "adagrpo_ray").rglob("*.py"))
ENGINES = {"ray", "vllm", "deepspeed"}
MODEL_LIBRARIES = {"peft", "transformers"}

LAYERS = (
    *("errors", "stop", "config", "types", "extensions", "algorithm"),
    *("data", "rewards", "storage", "runs", "toy", "model", "environments", "cards"),
    *("checkpoint", "cluster", "lora", "rollout", "sampling", "learner"),
    *("reports", "tracking", "training", "evaluation", "export", "viewer", "api"),
)
"""Packages, and modules at the root, from the lowest to the highest: each imports only from those before it."""

VLLM_USERS = (
    "adapter_slots",
    "device_phases",
    "engine",
    "engine_load",
    "engine_log",
    "engine_start",
    "merge_worker",
    "phase_tensors",
    "phases",
    "streaming",
    "vllm_params",
    "worker_extension",
)
"""Files of `rollout/` that import vLLM."""

LOADS_NO_ENGINE = (
    *("errors", "stop", "types", "config", "extensions", "algorithm", "data", "rewards", "storage", "runs"),
    *("toy", "model", "cards", "checkpoint", "lora", "sampling", "reports", "export"),
    *("learner.packing", "learner.buffers", "learner.activations", "learner.updates"),
    *("cluster.placement", "cluster.device_memory"),
    *(f"evaluation.{name}" for name in ("comparison", "problem_result", "overview", "results")),
    *(f"evaluation.{name}" for name in ("settings", "table", "progress_line")),
    *(f"environments.{name}" for name in ("episodes", "opening", "fork_server", "trl_adapter", "gym_tries")),
)
"""Packages and modules that load neither Ray, vLLM nor DeepSpeed, and so need no engine in their tests."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def names_in(node: ast.stmt, module: str) -> Iterator[str]:
    """The modules that an import statement of `module` imports: for `from a import b`, a.b if it is one, else a."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} has a relative import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in MODULES else str(node.module)


def statements(node: ast.AST, *, on_load: bool = False) -> Iterator[ast.stmt]:
    """The statements in `node`; with `on_load`, without those in functions and under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if on_load and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if on_load and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.stmt):
            yield child
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from statements(child, on_load=on_load)


@cache
def imports(module: str) -> frozenset[str]:
    """All that `module` imports, also in functions and under TYPE_CHECKING."""
    return frozenset(name for node in statements(parsed(module)) for name in names_in(node, module))


def of_library(module: str) -> set[str]:
    """The library's modules that `module` imports, itself aside."""
    return {name for name in imports(module) if name in MODULES and name != module}


def package_of(module: str) -> str:
    """The package at the root, or the module there; "" for the root itself, which stands above all."""
    return module.removeprefix("adagrpo_ray").removeprefix(".").partition(".")[0]


@cache
def imports_on_load(module: str) -> frozenset[str]:
    """The library's modules that are loaded with `module`, with their packages."""
    names = {name for node in statements(parsed(module), on_load=True) for name in names_in(node, module)}
    with_packages = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
    return frozenset(n for n in with_packages if n in MODULES and not f"{module}.".startswith(f"{n}."))


def reached(module: str) -> set[str]:
    """All of the library's modules that are loaded with `module`, itself included."""
    seen: set[str] = set()
    to_see = [module]
    while to_see:
        here = to_see.pop()
        if here not in seen:
            seen.add(here)
            to_see += imports_on_load(here)
    return seen


def foreign(module: str, libraries: set[str]) -> set[str]:
    """Those of `libraries` that `module` imports, in whole or in part."""
    return {name for name in imports(module) if name.split(".")[0] in libraries}


def under(*names: str) -> list[str]:
    """The library's modules that are one of `names` or lie in one of them."""
    wholes = tuple(f"adagrpo_ray.{name}" for name in names)
    found = [m for m in MODULES if m in wholes or m.startswith(tuple(f"{w}." for w in wholes))]
    missing = [w for w in wholes if not any(f"{m}.".startswith(f"{w}.") for m in found)]
    assert not missing
    return found


def circle(imported: dict[str, set[str]]) -> list[str]:
    """Modules or packages that import each other, the first one named twice; none if there is no circle."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


# --- packages


def test_every_package_has_its_layer() -> None:
    assert len(MODULES) > 100
    assert len(set(LAYERS)) == len(LAYERS)
    assert {package_of(module) for module in MODULES} == {"", *LAYERS}


def test_a_file_imports_only_its_own_package_and_lower_ones() -> None:
    height = {package: place for place, package in enumerate((*LAYERS, ""))}
    assert not {
        (module, name)
        for module in MODULES
        for name in of_library(module)
        if height[package_of(name)] > height[package_of(module)]
    }


def test_no_packages_import_each_other_in_a_circle() -> None:
    packages: dict[str, set[str]] = {}
    for module in MODULES:
        own = package_of(module)
        packages.setdefault(own, set()).update({package_of(name) for name in of_library(module)} - {own})
    assert circle(packages) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Not even in functions: a circle that is only hidden there is one all the same."""
    assert circle({module: of_library(module) for module in MODULES}) == []


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_at_most_six_modules_lie_at_the_root() -> None:
    assert len([file for file in FILES if file.parent == ROOT / "adagrpo_ray"]) <= 6


def test_no_two_files_have_the_same_name() -> None:
    counts = Counter(file.stem for file in FILES)
    assert {name for name, count in counts.items() if count > 1} <= {"__init__", "actor", "engine"}


# --- other libraries


def test_a_module_without_an_engine_loads_none() -> None:
    assert not {
        (module, loaded, name)
        for module in under(*LOADS_NO_ENGINE)
        for loaded in reached(module)
        for name in foreign(loaded, ENGINES)
    }


def test_the_algorithm_uses_no_model_library() -> None:
    modules = under("errors", "stop", "types", "config", "extensions", "algorithm", "sampling")
    assert not {module: found for module in modules if (found := foreign(module, MODEL_LIBRARIES))}


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        ("vllm", {"environments.vllm_parsers", *(f"rollout.{name}" for name in VLLM_USERS)}),
        ("deepspeed", {f"learner.{name}" for name in ("deepspeed_setup", "engine", "gradients", "masters")}),
        ("wandb", {"tracking.wandb_run"}),
        ("mlflow", {"tracking.mlflow_run"}),
        ("gradio", {f"viewer.{name}" for name in ("app", "chat_page", "controls", "runs_page")}),
    ],
)
def test_a_library_is_used_by_few_modules(library: str, modules: set[str]) -> None:
    assert {m for m in MODULES if foreign(m, {library})} == {f"adagrpo_ray.{module}" for module in modules}


def test_the_viewer_needs_neither_ray_nor_deepspeed() -> None:
    assert not {module: found for module in under("viewer") if (found := foreign(module, {"ray", "deepspeed"}))}


def test_only_a_run_starts_trackers() -> None:
    tracking, users = set(under("tracking")), {"adagrpo_ray.training.run", "adagrpo_ray.training.preflight"}
    assert {module for module in MODULES if module not in tracking and imports(module) & tracking} == users


def test_the_library_imports_no_launch_program_and_no_test() -> None:
    assert not {module: found for module in MODULES if (found := foreign(module, {"launch", "tests", "builders"}))}


# --- files


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


def test_no_module_has_a_name_that_fits_anything() -> None:
    assert not {m for m in MODULES if {"utils", "util", "manager", "helpers", "misc"} & {*m.split(".")}}
