"""The figures over all runs, and the page that shows them to staff."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db.models import F
from django.test import Client

from agentic_django.admin.operations import operations
from agentic_django.models import AgentRun
from tests.support.rows import make_run
from tests.support.statements import at_most

PAGE = "/admin/agentic_django/agentrun/operations/"


def completed(user: User, seconds: float, agent: str = "support", **columns: Any) -> AgentRun:
    run = make_run(user, "completed", agent_key=agent, days_ago=0.01)
    started = F("finished_at") - timedelta(seconds=seconds)
    AgentRun.objects.filter(pk=run.pk).update(started_at=started, **columns)
    return run


@pytest.fixture
def staff(user: User) -> Client:
    User.objects.filter(pk=user.pk).update(is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(User.objects.get(pk=user.pk))
    return client


def test_runs_are_counted_by_state(user: User) -> None:
    for status in ("pending", "running", "failed", "failed"):
        make_run(user, status)
    make_run(user, "failed", days_ago=3)
    counted = {part.key: part.count for part in operations().states if part.count}
    assert counted == {"pending": 1, "running": 1, "failed": 2}
    assert {p.key: p.count for p in operations(days=7).states}["failed"] == 3


def test_age_of_the_queue_is_the_age_of_the_oldest_due_run(user: User) -> None:
    assert operations().queue_age is None
    run = make_run(user, "pending")
    later = make_run(user, "pending")
    AgentRun.objects.filter(pk=run.pk).update(available_at=F("created_at") - timedelta(minutes=5))
    AgentRun.objects.filter(pk=later.pk).update(available_at=F("created_at") + timedelta(hours=5))
    figures = operations()
    assert figures.queue_length == 1
    assert figures.queue_age == pytest.approx(300, abs=30)


def test_percentiles_count_only_completed_runs(user: User) -> None:
    for seconds in range(1, 101):
        completed(user, seconds)
    make_run(user, "failed", agent_key="support", days_ago=0.01)
    (row,) = operations().agents
    assert (row.agent, row.runs, row.failed) == ("support", 101, 1)
    assert (row.p50, row.p95) == (pytest.approx(50), pytest.approx(95))


def test_percentiles_of_one_run_are_its_duration_and_of_none_are_missing(user: User) -> None:
    completed(user, 3, agent="a")
    make_run(user, "failed", agent_key="b")
    rows = {row.agent: (row.p50, row.p95) for row in operations().agents}
    assert rows == {"a": (pytest.approx(3), pytest.approx(3)), "b": (None, None)}


@pytest.mark.parametrize("sort", ["agent", "-agent", "runs", "-p95", "p50", "-tokens", "failed"])
def test_agents_are_sorted(user: User, sort: str) -> None:
    completed(user, 3, agent="a", usage={"total_tokens": 10})
    completed(user, 9, agent="b", usage={"total_tokens": 20})
    completed(user, 9, agent="b")
    make_run(user, "failed", agent_key="b")
    make_run(user, "failed", agent_key="c")
    rows = operations(sort=sort).agents
    name = sort.removeprefix("-")
    values = [getattr(row, name) for row in rows]
    known = [-1 if value is None else value for value in values]
    assert known == sorted(known, reverse=sort.startswith("-"))


def test_failures_are_counted_by_reason(user: User) -> None:
    for code in ("max_turns", "max_turns", "lost"):
        make_run(user, "failed", error_code=code)
    AgentRun.objects.filter(status="completed").delete()
    found = [(part.key, part.count) for part in operations().failures]
    assert found == [("max_turns", 2), ("lost", 1)]


def test_tokens_and_cost_are_summed_by_day(user: User) -> None:
    completed(user, 1, usage={"total_tokens": 100, "cost_usd": 0.25})
    completed(user, 1, usage={"total_tokens": 50})
    completed(user, 1, usage={})
    figures = operations(days=7)
    assert (figures.total_tokens, figures.total_cost) == (150, 0.25)
    assert sum(bar.value for bar in figures.tokens) == 150


def test_unknown_cost_is_not_zero(user: User) -> None:
    completed(user, 1, usage={"total_tokens": 100})
    assert operations().total_cost is None


def test_figures_can_be_filtered_by_agent(user: User) -> None:
    completed(user, 1, agent="a")
    completed(user, 1, agent="b")
    assert [row.agent for row in operations(agent="a").agents] == ["a"]


@pytest.mark.parametrize("days", [1, 30])
def test_chart_has_a_bar_where_runs_ended(user: User, days: int) -> None:
    completed(user, 1)
    bars = [bar for bar in operations(days=days).finished if bar.height]
    assert [(bar.value, bar.height) for bar in bars] == [(1.0, 104.0)]


def test_page_shows_the_figures(staff: Client, user: User) -> None:
    completed(user, 2.5, agent="support", usage={"total_tokens": 2318})
    make_run(user, "failed", error_code="max_turns")
    html = staff.get(PAGE).text
    for expected in (
        "2.5 s",
        "2,318",
        "max_turns",
        "Finished runs per hour",
        "<svg",
        "Show as table",
    ):
        assert expected in html
    assert " style=" not in html.partition('id="content-main"')[2].partition("</main>")[0]


def test_page_is_linked_from_the_list_of_runs(staff: Client) -> None:
    assert f'href="{PAGE}"' in staff.get("/admin/agentic_django/agentrun/").text


@pytest.mark.parametrize(
    "query", ["days=7&sort=-p95", "days=x", "sort=password", "agent=%00", "agent=<b>", "days=9999"]
)
def test_the_page_accepts_any_query_string(staff: Client, user: User, query: str) -> None:
    completed(user, 1)
    response = staff.get(f"{PAGE}?{query}")
    assert response.status_code == 200
    assert "<b>" not in response.text


def test_column_is_sorted_the_other_way_by_its_link(staff: Client, user: User) -> None:
    completed(user, 1)
    assert "sort=runs" in staff.get(PAGE).text
    assert 'aria-sort="ascending"' in staff.get(f"{PAGE}?sort=p95").text


def test_page_needs_the_permission_to_see_runs(user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_staff=True)
    client = Client()
    client.force_login(User.objects.get(pk=user.pk))
    assert client.get(PAGE).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_agentrun"))
    assert client.get(PAGE).status_code == 200


def test_number_of_statements_does_not_grow_with_the_runs(staff: Client, user: User) -> None:
    for seconds in range(20):
        completed(user, seconds, agent=("a", "b")[seconds % 2])
    with at_most(20):
        staff.get(PAGE)
