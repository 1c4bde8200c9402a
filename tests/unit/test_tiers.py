"""The unit tests are quick: none starts an engine, or imports one by its name."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.places import ROOT

UNIT = sorted((ROOT / "tests" / "unit").rglob("*.py"))
ENGINES = {"vllm", "deepspeed"}
FIXTURES = {"tiny_model", "model_path", "whole", "gate"}
"""Fixtures that build a model, or start programs."""
STARTS = {"ray.init", "RolloutEngine.start", "start_engine", "LearnerEngine", "one_rank"}


def test_there_are_unit_tests_to_look_at() -> None:
    assert len(UNIT) > 50


def engine_uses(path: Path) -> set[str]:
    """The engines, fixtures of engines and starts of engines in a file."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    asked = {argument.arg for function in functions for argument in function.args.args}
    decorators = [node for function in functions for each in function.decorator_list for node in ast.walk(each)]
    asked |= {str(node.value) for node in decorators if isinstance(node, ast.Constant)}
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    return {name.partition(".")[0] for name in imported} & ENGINES | asked & FIXTURES | called & STARTS


def test_a_unit_test_starts_no_engine() -> None:
    found = {path.stem: uses for path in UNIT if (uses := engine_uses(path))}
    assert not found, "a test with them goes to tests/integration"
