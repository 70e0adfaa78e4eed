"""When a run did what: rows, their ends, and the axis."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.template import Context, Template
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from agentic_django.models import AgentEvent, AgentRun
from agentic_django.presentation.timeline import WIDTH, timeline
from tests.support.rows import make_checkpoint, make_events, make_run
from tests.support.statements import at_most

START = timezone.now() - timedelta(hours=1)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture
def run(user: User) -> AgentRun:
    """A run that was asked for at the start of the test's clock."""
    run = make_run(user, "completed")
    AgentRun.objects.filter(pk=run.pk).update(created_at=START)
    run.refresh_from_db()
    return run


@pytest.fixture
def tell(run: AgentRun) -> Callable[..., None]:
    """Let an event of the run have happened then: ``tell(1.5, "run.started", attempt=1)``."""

    def tell(seconds: float, kind: str, **payload: Any) -> None:
        make_events(run, 1, event_type=kind, payload=payload)
        rows = AgentEvent.objects.filter(run=run, sequence=run.event_count)
        rows.update(created_at=at(seconds))

    return tell


@pytest.fixture
def record(run: AgentRun) -> Callable[..., None]:
    """Let a call have been recorded: ``record("tool", "find_order", 1, 2.0, 2.5)``."""

    def record(kind: str, name: str, attempt: int, start: float, end: float, **more: Any) -> None:
        times = {"started_at": at(start), "finished_at": at(end)}
        make_checkpoint(run, f"k{start}", kind=kind, name=name, attempt=attempt, **times, **more)

    return record


def test_run_that_lost_a_worker_has_a_row_for_each_attempt_and_call(
    run: AgentRun, tell: Any, record: Any
) -> None:
    tell(0.1, "run.started", attempt=1)
    record("model", "support", 1, 0.2, 2.2)
    record("tool", "find_order", 1, 2.3, 2.4)
    tell(4, "run.retrying", attempt=1, reason="lost")
    tell(5, "run.started", attempt=2)
    record("tool", "read_policy", 2, 5.1, 5.2)
    tell(6, "run.completed")
    rows = timeline(run).rows
    assert [(row.kind, row.label, row.state) for row in rows] == [
        ("attempt", "Attempt 1", "lost"),
        ("model", "model", "done"),
        ("tool", "find_order", "done"),
        ("wait", "Waiting to retry", "done"),
        ("attempt", "Attempt 2", "done"),
        ("tool", "read_policy", "done"),
    ]
    assert [row.note for row in rows if row.kind == "attempt"] == ["", "2 results reused"]
    assert [round(row.seconds, 2) for row in rows][:3] == [3.9, 2.0, 0.1]


@pytest.mark.parametrize(
    ("kind", "payload", "state"),
    [
        ("run.completed", {}, "done"),
        ("run.failed", {"code": "max_turns"}, "failed"),
        ("run.failed", {"code": "lost"}, "lost"),
        ("run.timed_out", {}, "failed"),
        ("run.cancelled", {}, "stopped"),
        ("run.retrying", {"reason": "provider_busy"}, "failed"),
    ],
)
def test_attempt_says_how_it_ended(
    run: AgentRun, tell: Any, kind: str, payload: dict[str, Any], state: str
) -> None:
    tell(0.1, "run.started", attempt=1)
    tell(2, kind, **payload)
    assert timeline(run).rows[0].state == state


def test_results_of_an_earlier_generation_are_not_reused(
    run: AgentRun, tell: Any, record: Any
) -> None:
    tell(0.1, "run.started", attempt=1)
    record("model", "support", 1, 0.2, 2.2)
    tell(3, "run.failed", code="max_turns")
    tell(3, "run.retrying", reason="asked")
    tell(3, "run.started", attempt=2)
    record("model", "support", 2, 3.2, 4.2, generation=2)
    tell(5, "run.completed")
    AgentRun.objects.filter(pk=run.pk).update(generation=2)
    run.refresh_from_db()
    assert [row.note for row in timeline(run).rows if row.kind == "attempt"] == ["", ""]


def test_time_in_the_queue_is_a_wait(run: AgentRun, tell: Any) -> None:
    tell(3, "run.started", attempt=1)
    tell(4, "run.completed")
    first = timeline(run).rows[0]
    assert (first.kind, first.label, first.seconds) == ("wait", "Queued", 3.0)


def test_long_wait_is_cut_to_the_length_of_the_rest(run: AgentRun, tell: Any) -> None:
    tell(0, "run.started", attempt=1)
    tell(5, "run.waiting", reason="approval")
    tell(3605, "run.started", attempt=2)
    tell(3610, "run.completed")
    shown = timeline(run)
    widths = {row.label: round(row.width) for row in shown.rows}
    assert widths["Waiting for approval"] == pytest.approx(WIDTH / 2, abs=3)
    assert widths["Attempt 1"] == widths["Attempt 2"] == pytest.approx(WIDTH / 4, abs=3)
    assert [row.label for row in shown.rows if row.is_broken] == ["Waiting for approval"]
    assert all(row.x >= 0 and row.x + row.width <= WIDTH + 1 for row in shown.rows)


def test_short_wait_is_drawn_to_scale(run: AgentRun, tell: Any) -> None:
    tell(0, "run.started", attempt=1)
    tell(5, "run.waiting", reason="approval")
    tell(6, "run.started", attempt=2)
    tell(10, "run.completed")
    wait = timeline(run).rows[1]
    assert wait.width == pytest.approx(WIDTH / 10, abs=1)
    assert not wait.is_broken


def test_running_call_is_shown_up_to_now(user: User, tell: Any, run: AgentRun) -> None:
    AgentRun.objects.filter(pk=run.pk).update(status="running", finished_at=None)
    run.refresh_from_db()
    tell(1, "run.started", attempt=1)
    tell(2, "tool.called", call_id="c", tool="find_order", arguments={})
    tell(2, "tool.called", call_id="d", tool="read_policy", arguments={})
    tell(3, "tool.output", call_id="d", tool="read_policy", output="", duration_seconds=1)
    busy = [row.label for row in timeline(run).rows if row.state == "busy"]
    assert busy == ["Attempt 1", "find_order"]


def test_run_that_never_started_is_queued(user: User) -> None:
    rows = timeline(make_run(user, "pending")).rows
    assert [(row.label, row.state) for row in rows] == [("Queued", "waiting")]


def test_number_of_calls_that_are_left_out_is_shown(run: AgentRun, record: Any) -> None:
    for number in range(305):
        record("tool", "t", 1, number, number + 0.5)
    shown = timeline(run)
    assert shown.left_out == 5
    assert sum(row.kind == "tool" for row in shown.rows) == 300


def test_timeline_takes_two_statements(run: AgentRun, tell: Any, record: Any) -> None:
    tell(0, "run.started", attempt=1)
    record("tool", "find_order", 1, 1, 2)
    with at_most(2):
        timeline(run)


def test_table_says_what_the_bars_show(run: AgentRun, tell: Any, record: Any) -> None:
    tell(0, "run.started", attempt=1)
    record("tool", "<b>find</b>", 1, 1, 3.1)
    tell(4, "run.retrying", reason="lost")
    source = "{% load agentic_django_tags %}{% agent_run_timeline run %}"
    html = Template(source).render(Context({"run": run}))
    for expected in ("<caption", "+1.0 s", "2.1 s", "lost", 'scope="row"', 'aria-hidden="true"'):
        assert expected in html
    assert "<b>" not in html
    assert "style=" not in html


def test_page_of_a_run_has_its_timeline(client: Client, run: AgentRun, tell: Any) -> None:
    tell(0, "run.started", attempt=1)
    html = client.get(f"/agents/runs/{run.pk}/", headers={"Accept": "text/html"}).text
    assert "Attempt 1" in html


def test_work_and_wait_add_up_to_the_whole(client: Client, user: User) -> None:
    run = make_run(user)
    end = run.created_at + timedelta(seconds=160)
    AgentRun.objects.filter(pk=run.pk).update(
        attempt=2,
        active_seconds=3.601064855000004,
        started_at=end - timedelta(seconds=2),
        finished_at=end,
    )
    address = reverse("agents:run-detail", args=[run.pk])
    html = " ".join(client.get(address, headers={"Accept": "text/html"}).text.split())
    assert "<dt>Worked</dt> <dd>3.6 s</dd>" in html
    assert "<dt>Waited</dt> <dd>2 m 36 s</dd>" in html
    assert "<dt>In all</dt> <dd>2 m 40 s</dd>" in html
    User.objects.filter(pk=user.pk).update(is_staff=True, is_superuser=True)
    admin = client.get(reverse("admin:agentic_django_agentrun_change", args=[run.pk])).text
    assert "3.6 s" in admin
    assert "3.601064855" not in admin
