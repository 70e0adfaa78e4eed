"""How the whole installation does, for its staff: figures over runs, in a few statements."""

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
    "Part",
    "charts",
    "choices",
    "columns",
    "operations",
    "parse_filters",
]

PERIODS = (1, 7, 30)
"""So many days one may look back."""

MAX_AGENTS = 50
"""So many agents have a row of their own, those with the most runs first."""

SORTS = ("agent", "runs", "failed", "p50", "p95", "tokens")
"""By what the table of agents can be sorted."""

Status = AgentRun.Status
_TOOK = ExpressionWrapper(F("finished_at") - F("started_at"), output_field=DurationField())


@dataclass(frozen=True, slots=True)
class Part:
    """How many runs of one kind."""

    key: str
    label: str
    count: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart: an hour or a day, and its figure."""

    moment: datetime | date
    value: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class AgentFigures:
    """One agent's runs in the period; times in seconds, None where none completed."""

    agent: str
    runs: int
    failed: int
    p50: float | None
    p95: float | None
    tokens: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of the page; ages in seconds, None where nothing waits."""

    days: int
    agent: str
    states: Sequence[Part]
    queue_age: float | None
    queue_length: int
    lost: int
    per_hour: float
    finished: Sequence[Bar]
    by_hour: bool
    failures: Sequence[Part]
    agents: Sequence[AgentFigures]
    tokens: Sequence[Bar]
    total_tokens: float
    total_cost: float | None
    costs: Sequence[Bar]


def operations(*, days: int = 1, agent: str = "", sort: str = "-runs") -> Figures:
    """Return the figures of the last days, of all agents or of one."""
    rows = AgentRun.objects.using(database())
    rows = rows.filter(agent_key=agent) if agent else rows
    since = timezone.now() - timedelta(days=days)
    ended = rows.filter(finished_at__gte=since)
    waiting = rows.due().aggregate(n=Count("*"), oldest=Min("available_at"))
    finished = _finished(ended, days)
    tokens, costs = _by_day(ended, "total_tokens", days), _by_day(ended, "cost_usd", days)
    return Figures(
        days=days,
        agent=agent,
        states=_states(rows, since),
        queue_age=_age(waiting["oldest"]),
        queue_length=waiting["n"],
        lost=rows.orphaned().count(),
        per_hour=sum(bar.value for bar in finished) / (days * 24),
        finished=finished,
        by_hour=days == 1,
        failures=_failures(ended),
        agents=_agents(ended, sort),
        tokens=tokens,
        total_tokens=sum(bar.value for bar in tokens),
        total_cost=sum(bar.value for bar in costs) if any(bar.value for bar in costs) else None,
        costs=costs,
    )


def agent_keys() -> list[str]:
    """Return the agents that have runs, for a choice."""
    keys = AgentRun.objects.using(database()).values_list("agent_key", flat=True)
    return sorted(keys.order_by().distinct())


def _age(moment: datetime | None) -> float | None:
    return max((timezone.now() - moment).total_seconds(), 0.0) if moment else None


def _states(rows: RunQuerySet, since: datetime) -> list[Part]:
    """Count what is unfinished now, and what ended since."""
    wanted = rows.filter(~Q(status__in=FINISHED) | Q(finished_at__gte=since))
    counted = wanted.order_by().values_list("status").annotate(n=Count("*"))
    found: dict[str, int] = dict(counted)
    return [Part(state.value, str(state.label), found.get(state, 0)) for state in Status]


def _failures(ended: RunQuerySet) -> list[Part]:
    bad = ended.filter(status__in=(Status.FAILED, Status.TIMED_OUT)).order_by()
    counted = bad.values_list("error_code").annotate(n=Count("*")).order_by("-n", "error_code")
    return [Part(code, str(message_for_code(code)), n) for code, n in counted[:20]]


# Agents


def _agents(ended: RunQuerySet, sort: str) -> list[AgentFigures]:
    bad = Q(status__in=(Status.FAILED, Status.TIMED_OUT))
    grouped = (
        ended.order_by()
        .values("agent_key")
        .annotate(
            n=Count("*"),
            bad=Count("pk", filter=bad),
            good=Count("pk", filter=Q(status=Status.COMPLETED, started_at__isnull=False)),
            tokens=usage_sum("total_tokens"),
        )
    )
    found = [_agent(ended, row) for row in grouped.order_by("-n", "agent_key")[:MAX_AGENTS]]
    name = sort.removeprefix("-")
    return sorted(found, key=lambda row: _key(row, name), reverse=sort.startswith("-"))


def _key(row: AgentFigures, name: str) -> Any:
    value = getattr(row, name)
    return -1.0 if value is None else value


def _agent(ended: RunQuerySet, row: Mapping[str, Any]) -> AgentFigures:
    key, count = row["agent_key"], row["good"]
    times = ended.filter(agent_key=key, status=Status.COMPLETED, started_at__isnull=False)
    times = times.annotate(took=_TOOK).order_by("took")
    p50, p95 = (_percentile(times, count, share) for share in (0.5, 0.95))
    return AgentFigures(key, row["n"], row["bad"], p50, p95, row["tokens"] or 0.0)


def _percentile(times: Any, count: int, share: float) -> float | None:
    """Return the smallest time that at least this share of the runs does not exceed."""
    if not count:
        return None
    at = max(-(-count * round(share * 100) // 100) - 1, 0)
    took: timedelta | None = times.values_list("took", flat=True)[at : at + 1].first()
    return took.total_seconds() if took is not None else None


# Charts

CHART = (1000, 120)
"""Width and height of a chart, in units of the drawing."""

HEADROOM = 16
"""What is left free above the highest bar."""

MOST_WIDE = 60.0
"""A bar is no wider, however few there are."""


def _finished(ended: RunQuerySet, days: int) -> list[Bar]:
    """Return how many runs ended in each hour of a day, or on each of many days."""
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
    return [
        _bar(moment, values.get(moment, 0.0), most, n * each, each, height)
        for n, moment in enumerate(moments)
    ]


def _bar(moment: Any, value: float, most: float, x: float, each: float, height: float) -> Bar:
    tall = max(value / most * (height - HEADROOM), 2.0) if value else 0.0
    wide = min(each * 0.8, MOST_WIDE)
    return Bar(moment, value, x + (each - wide) / 2, height - tall, wide, tall)


# The page's links and charts


def parse_filters(given: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page of figures is asked for; what is none of its choices is the default."""
    days, sort = given.get("days", ""), given.get("sort", "")
    return {
        "days": int(days) if days in map(str, PERIODS) else PERIODS[0],
        "agent": given.get("agent", "")[:100].replace("\0", ""),
        "sort": sort if sort.removeprefix("-") in SORTS else "-runs",
    }


def _choice(asked: dict[str, Any], name: str, value: Any, label: Any) -> dict[str, Any]:
    query = {key: each for key, each in {**asked, name: value}.items() if each}
    address = reverse("admin:agentic_django_operations", query=query)
    return {"label": label, "address": address, "is_chosen": asked[name] == value}


def choices(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the links that choose a period and an agent."""
    labels = {1: _("Last 24 hours"), 7: _("Last 7 days"), 30: _("Last 30 days")}
    periods = [_choice(asked, "days", days, label) for days, label in labels.items()]
    keys = [_choice(asked, "agent", key, key) for key in agent_keys()]
    agents = [_choice(asked, "agent", "", _("All agents")), *keys]
    return [{"label": _("Period"), "links": periods}, {"label": _("Agent"), "links": agents}]


def columns(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the headings of the table of agents, each a link that sorts by it."""
    labels = {
        "agent": _("agent"),
        "runs": _("runs"),
        "failed": _("Failed"),
        "p50": _("Median"),
        "p95": _("95th percentile"),
        "tokens": _("Tokens"),
    }
    return [_column(asked, name, label) for name, label in labels.items()]


def _column(asked: dict[str, Any], name: str, label: Any) -> dict[str, Any]:
    is_down, is_up = asked["sort"] == f"-{name}", asked["sort"] == name
    order = "descending" if is_down else "ascending" if is_up else ""
    return {**_choice(asked, "sort", name if is_down else f"-{name}", label), "order": order}


def charts(figures: Figures) -> list[dict[str, Any]]:
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
