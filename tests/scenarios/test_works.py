"""Pipelines, functions and classes that are killed at any commit end like uninterrupted ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("kind", ["pipeline", "function", "class", "asking"])
def test_work_that_is_killed_at_any_commit_ends_like_uninterrupted_work(
    interrupt: Callable[..., Any], kind: str
) -> None:
    [report] = interrupt("kill", f"work_{kind}")
    assert not report["problems"], report
    assert report["commits"] >= 8, report
    assert report["uninterrupted"] == "completed", report
    assert report["interruptions"] == 2 * report["commits"]
