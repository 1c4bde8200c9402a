"""The unit tests are quick: none starts an engine, or imports one by its name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.places import ROOT

UNIT = sorted((ROOT / "tests" / "unit").rglob("*.py"))
ENGINES = {"vllm", "deepspeed"}
FIXTURES = {"tiny_model", "model_path", "whole", "gate"}
"""Fixtures that build a model, or start programs."""
STARTS = {"ray.init", "RolloutEngine.start", "start_engine", "LearnerEngine", "one_rank"}


def test_there_are_unit_tests_to_look_at() -> None:
    assert len(UNIT) > 50


@pytest.mark.parametrize("path", UNIT, ids=lambda path: path.stem)
def test_a_unit_test_starts_no_engine(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    asked = {argument.arg for function in functions for argument in function.args.args}
    decorators = [node for function in functions for each in function.decorator_list for node in ast.walk(each)]
    asked |= {str(node.value) for node in decorators if isinstance(node, ast.Constant)}
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert not {name.partition(".")[0] for name in imported} & ENGINES
    assert not asked & FIXTURES, "a test with them goes to tests/integration"
    assert not called & STARTS, "a test that starts an engine goes to tests/integration"
