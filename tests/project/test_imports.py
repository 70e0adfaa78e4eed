"""Imports that import-linter cannot forbid, because it knows external packages by name only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "agentic_django"
MODULES = sorted([*PACKAGE.glob("engine/*.py"), *PACKAGE.glob("models/*.py")])


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses_http(source: str) -> bool:
    return any(f"{name}.".startswith("django.http.") for name in imported(source))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_engine_and_models_do_not_import_django_http(path: Path) -> None:
    assert not uses_http(path.read_text()), "The engine and the models work without HTTP requests."


@pytest.mark.parametrize(
    "source", ["import django.http", "from django.http import Http404", "from django import http"]
)
def test_import_of_django_http_is_recognised(source: str) -> None:
    assert uses_http(source)
