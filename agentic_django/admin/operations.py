"""Computes the metrics of all runs for the operations page, in a few queries.

``RunAdmin`` in ``admin.runs`` serves the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from django.db.models import Count, DurationField, ExpressionWrapper, F, Min, Q
from django.db.models.functions import TruncDate, TruncHour
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from agentic_django.exceptions import message_for_code
from agentic_django.models import FINISHED, AgentRun, database
from agentic_django.models.querysets import RunQuerySet, usage_sum

__all__ = [
    "AgentFigures",
    "Bar",
    "Figures",
    "RunCount",
    "charts",
    "choices",
    "columns",
    "operations",
    "parse_filters",
]

PERIODS = (1, 7, 30)
"""The periods that the page offers, in days."""

MAX_AGENTS = 50
"""The maximum number of agents in the table. Agents with the most runs come first."""

SORTS = ("agent", "runs", "failed", "p50", "p95", "tokens")
"""The columns by which the table of agents can be sorted."""

Status = AgentRun.Status
_DURATION = ExpressionWrapper(F("finished_at") - F("started_at"), output_field=DurationField())


@dataclass(frozen=True, slots=True)
class RunCount:
    """The number of runs with one status or error code."""

    key: str
    label: str
    count: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart: an hour or a day, and its value."""

    moment: datetime | date
    value: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class AgentFigures:
    """The metrics of one agent in the period. Times are in seconds, or None if no run completed."""

    agent: str
    runs: int
    failed: int
    p50: float | None
    p95: float | None
    tokens: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All metrics of the page. ``queue_age`` is in seconds, or None if no run waits."""

    days: int
    agent: str
    states: Sequence[RunCount]
    queue_age: float | None
    queue_length: int
    lost: int
    per_hour: float
    finished: Sequence[Bar]
    by_hour: bool
    failures: Sequence[RunCount]
    agents: Sequence[AgentFigures]
    tokens: Sequence[Bar]
    total_tokens: float
    total_cost: float | None
    costs: Sequence[Bar]


def operations(*, days: int = 1, agent: str = "", sort: str = "-runs") -> Figures:
    """Return the metrics of the last ``days`` days, for all agents or for one."""
    rows = AgentRun.objects.using(database())
    rows = rows.filter(agent_key=agent) if agent else rows
    since = timezone.now() - timedelta(days=days)
    ended = rows.filter(finished_at__gte=since)
    waiting = rows.due().aggregate(n=Count("*"), oldest=Min("available_at"))
    oldest = waiting["oldest"]
    # The unfinished runs, and the runs that ended in the period.
    shown = rows.filter(~Q(status__in=FINISHED) | Q(finished_at__gte=since)).order_by()
    by_status = dict(shown.values_list("status").annotate(n=Count("*")))
    bad = ended.filter(status__in=(Status.FAILED, Status.TIMED_OUT)).order_by()
    by_code = bad.values_list("error_code").annotate(n=Count("*")).order_by("-n", "error_code")
    finished = _finished(ended, days)
    tokens, costs = _by_day(ended, "total_tokens", days), _by_day(ended, "cost_usd", days)
    return Figures(
        days=days,
        agent=agent,
        states=[RunCount(each.value, str(each.label), by_status.get(each, 0)) for each in Status],
        queue_age=max((timezone.now() - oldest).total_seconds(), 0.0) if oldest else None,
        queue_length=waiting["n"],
        lost=rows.orphaned().count(),
        per_hour=sum(bar.value for bar in finished) / (days * 24),
        finished=finished,
        by_hour=days == 1,
        failures=[RunCount(code, str(message_for_code(code)), n) for code, n in by_code[:20]],
        agents=_agents(ended, sort),
        tokens=tokens,
        total_tokens=sum(bar.value for bar in tokens),
        total_cost=sum(bar.value for bar in costs) if any(bar.value for bar in costs) else None,
        costs=costs,
    )


def agent_keys() -> list[str]:
    """Return the keys of the agents that have runs, sorted."""
    keys = AgentRun.objects.using(database()).values_list("agent_key", flat=True)
    return sorted(keys.order_by().distinct())


# Agents


def _agents(ended: RunQuerySet, sort: str) -> list[AgentFigures]:
    bad = Q(status__in=(Status.FAILED, Status.TIMED_OUT))
    good = Q(status=Status.COMPLETED, started_at__isnull=False)
    grouped = (
        ended.order_by()
        .values("agent_key")
        .annotate(
            n=Count("*"),
            bad=Count("pk", filter=bad),
            good=Count("pk", filter=good),
            tokens=usage_sum("total_tokens"),
        )
    )
    found = []
    for row in grouped.order_by("-n", "agent_key")[:MAX_AGENTS]:
        times = ended.filter(good, agent_key=row["agent_key"])
        times = times.annotate(duration=_DURATION).order_by("duration")
        p50, p95 = (_percentile(times, row["good"], share) for share in (0.5, 0.95))
        tokens = row["tokens"] or 0.0
        found.append(AgentFigures(row["agent_key"], row["n"], row["bad"], p50, p95, tokens))
    name = sort.removeprefix("-")
    return sorted(
        found,
        key=lambda row: -1.0 if (value := getattr(row, name)) is None else value,
        reverse=sort.startswith("-"),
    )


def _percentile(times: Any, count: int, share: float) -> float | None:
    """Return the smallest time that at least this share of the runs does not exceed."""
    if not count:
        return None
    at = max(-(-count * round(share * 100) // 100) - 1, 0)
    duration: timedelta | None = times.values_list("duration", flat=True)[at : at + 1].first()
    return duration.total_seconds() if duration is not None else None


# Charts

CHART = (1000, 120)
"""Width and height of a chart, in units of the drawing."""

HEADROOM = 16
"""The space above the highest bar."""

MAX_BAR_WIDTH = 60.0
"""The maximum width of a bar."""


def _finished(ended: RunQuerySet, days: int) -> list[Bar]:
    """Return the number of runs that ended in each hour of one day, or on each of several days."""
    if days > 1:
        return _bars(_per_day(ended, Count("*")), _days(days))
    hours = ended.annotate(hour=TruncHour("finished_at")).order_by().values_list("hour")
    now = timezone.localtime().replace(minute=0, second=0, microsecond=0)
    moments = [now - timedelta(hours=n) for n in range(23, -1, -1)]
    return _bars({hour: float(n) for hour, n in hours.annotate(n=Count("*"))}, moments)


def _by_day(ended: RunQuerySet, name: str, days: int) -> list[Bar]:
    return _bars(_per_day(ended, usage_sum(name)), _days(days))


def _per_day(ended: RunQuerySet, figure: Any) -> dict[Any, float]:
    days = ended.annotate(day=TruncDate("finished_at")).order_by().values_list("day")
    return {day: float(n or 0) for day, n in days.annotate(n=figure)}


def _days(days: int) -> list[date]:
    today = timezone.localdate()
    return [today - timedelta(days=n) for n in range(days, -1, -1)]


def _bars(values: dict[Any, float], moments: Sequence[Any]) -> list[Bar]:
    width, height = CHART
    most = max([*values.values(), 0.0]) or 1.0
    each = width / len(moments)
    wide = min(each * 0.8, MAX_BAR_WIDTH)
    bars = []
    for n, moment in enumerate(moments):
        value = values.get(moment, 0.0)
        tall = max(value / most * (height - HEADROOM), 2.0) if value else 0.0
        bars.append(Bar(moment, value, n * each + (each - wide) / 2, height - tall, wide, tall))
    return bars


# The page's links and charts


def parse_filters(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the filters in a query string. Invalid values are replaced by the defaults."""
    days, sort = query.get("days", ""), query.get("sort", "")
    return {
        "days": int(days) if days in map(str, PERIODS) else PERIODS[0],
        "agent": query.get("agent", "")[:100].replace("\0", ""),
        "sort": sort if sort.removeprefix("-") in SORTS else "-runs",
    }


def _choice(filters: dict[str, Any], name: str, value: Any, label: Any) -> dict[str, Any]:
    """Return the link that changes one filter."""
    query = {key: each for key, each in {**filters, name: value}.items() if each}
    address = reverse("admin:agentic_django_operations", query=query)
    return {"label": label, "address": address, "is_chosen": filters[name] == value}


def choices(filters: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the links that choose a period and an agent."""
    labels = {1: _("Last 24 hours"), 7: _("Last 7 days"), 30: _("Last 30 days")}
    periods = [_choice(filters, "days", days, label) for days, label in labels.items()]
    keys = [_choice(filters, "agent", key, key) for key in agent_keys()]
    agents = [_choice(filters, "agent", "", _("All agents")), *keys]
    return [{"label": _("Period"), "links": periods}, {"label": _("Agent"), "links": agents}]


def columns(filters: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the headings of the table of agents, with the links that sort it."""
    labels = {
        "agent": _("agent"),
        "runs": _("runs"),
        "failed": _("Failed"),
        "p50": _("Median"),
        "p95": _("95th percentile"),
        "tokens": _("Tokens"),
    }
    columns = []
    for name, label in labels.items():
        is_down, is_up = filters["sort"] == f"-{name}", filters["sort"] == name
        order = "descending" if is_down else "ascending" if is_up else ""
        link = _choice(filters, "sort", name if is_down else f"-{name}", label)
        columns.append({**link, "order": order})
    return columns


def charts(figures: Figures) -> list[dict[str, Any]]:
    """Return the charts of the page: finished runs, tokens and, if known, cost."""
    per_day = {"by_hour": False, "is_money": False}
    ended = _("Finished runs per hour") if figures.by_hour else _("Finished runs per day")
    charts = [
        {**per_day, "label": ended, "bars": figures.finished, "by_hour": figures.by_hour},
        {**per_day, "label": _("Tokens per day"), "bars": figures.tokens},
    ]
    if figures.total_cost is not None:
        charts.append(
            {**per_day, "label": _("Cost per day"), "bars": figures.costs, "is_money": True}
        )
    return charts
