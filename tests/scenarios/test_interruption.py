"""An attempt that is killed or paused at any of its commits changes nothing of what comes out."""

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
def test_a_kill_at_any_commit_changes_nothing(
    interrupt: Interrupt, agents: tuple[str, ...]
) -> None:
    reports = interrupt("kill", *agents)
    check(reports)
    for report in reports:
        assert report["interruptions"] == 2 * report["commits"]


def test_a_run_that_is_killed_after_each_thing_it_records_comes_to_its_end(
    interrupt: Interrupt,
) -> None:
    reports = interrupt("always", "everything")
    check(reports)
    assert reports[0]["interruptions"] > 8


def test_every_process_may_die_behind_each_decision(interrupt: Interrupt) -> None:
    check(interrupt("always", "gated", "gated_nested"))


def test_a_process_that_is_paused_past_its_lease_changes_nothing_when_it_goes_on(
    interrupt: Interrupt,
) -> None:
    check(interrupt("pause", "parallel", "nested"))


def test_a_process_that_is_paused_while_a_person_decides_changes_nothing(
    interrupt: Interrupt,
) -> None:
    check(interrupt("pause", "gate"))


def test_a_call_that_must_not_be_repeated_is_not_whenever_its_process_dies(
    interrupt: Interrupt,
) -> None:
    reports = interrupt("once", "paying")
    check(reports)
    # Behind the commit of the intent, up to before that of the result: whether the call was made
    # cannot be known.
    assert reports[0]["refused"] == 2
