"""A run whose attempt is killed or paused at any commit ends like an uninterrupted run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]

type Interrupt = Callable[..., list[dict[str, Any]]]


def check(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert not report["problems"], report
        assert report["commits"] >= 3, report
        assert report["uninterrupted"] == "completed", report


@pytest.mark.parametrize(
    "agents",
    [
        ("plain", "parallel", "nested"),
        ("handoffs", "guarded", "structured"),
        ("timing_out", "flaky", "everything"),
        ("gated",),
        ("gated_nested",),
    ],
    ids=" ".join,
)
def test_a_run_that_is_killed_at_any_commit_ends_like_an_uninterrupted_one(
    interrupt: Interrupt, agents: tuple[str, ...]
) -> None:
    reports = interrupt("kill", *agents)
    check(reports)
    for report in reports:
        assert report["interruptions"] == 2 * report["commits"]


def test_a_run_that_is_killed_after_each_record_completes(
    interrupt: Interrupt,
) -> None:
    reports = interrupt("always", "everything")
    check(reports)
    assert reports[0]["interruptions"] > 8


def test_a_run_that_is_killed_after_each_decision_completes(interrupt: Interrupt) -> None:
    check(interrupt("always", "gated", "gated_nested"))


def test_a_process_that_was_paused_past_its_lease_changes_nothing(
    interrupt: Interrupt,
) -> None:
    check(interrupt("pause", "parallel", "nested"))


def test_a_process_that_was_paused_during_a_decision_changes_nothing(
    interrupt: Interrupt,
) -> None:
    check(interrupt("pause", "gate"))


def test_an_at_most_once_call_is_not_repeated_at_whichever_commit_its_process_dies(
    interrupt: Interrupt,
) -> None:
    reports = interrupt("once", "paying")
    check(reports)
    # Two kills fall between the commit of the intent and that of the result. After them nobody
    # can know whether the call was made.
    assert reports[0]["refused"] == 2
