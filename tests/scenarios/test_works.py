"""Pipelines, functions and classes that are killed at any of their commits come out the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("kind", ["pipeline", "function", "class", "asking"])
def test_a_kill_at_any_commit_changes_nothing(interrupt: Callable[..., Any], kind: str) -> None:
    [report] = interrupt("kill", f"work_{kind}")
    assert not report["problems"], report
    assert report["commits"] >= 8, report
    assert report["uninterrupted"] == "completed", report
    assert report["interruptions"] == 2 * report["commits"]
