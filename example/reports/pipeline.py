"""The steps of a report. ``AGENTIC_DJANGO_AGENT_REGISTRY`` names :func:`agents`.

The result of each step is recorded once. If a worker dies, the report continues after the last
recorded step. The interrupted step is repeated, so steps that write rows skip existing rows.
"""

from __future__ import annotations

import json
import os
from typing import Any

from agents import Agent
from django.conf import settings
from django.db.models import Count, QuerySet, Sum
from django.db.models.functions import TruncMonth
from django.template.loader import render_to_string

from agentic_django.runtime import RunContext
from agentic_django.steps import Pipeline, Step
from example.reports import sheets
from example.reports.models import AGENT_KEY, Report, Row
from example.reports.summary import summary
from example.shop.demo_model import DemoModel

INSTRUCTIONS = """\
You summarise a shop's sales for its owner, from the figures you are given and nothing else.
Write at most 90 words of Markdown: the total, the best and the weakest month, who leads.
"""
SHOWN_PROBLEMS = 20
SHOWN_MONTHS = 24

type State = dict[str, Any]


def parse(ctx: RunContext, state: State) -> dict[str, Any]:
    """Read the file into rows."""
    report = report_of(ctx)
    with report.file.open("rb") as file:
        found = sheets.read(file.read())
    rows = [Row(report=report, line=line, cells=cells) for line, cells in found]
    Row.objects.bulk_create(rows, batch_size=1000, ignore_conflicts=True)
    return {"rows": len(rows)}


def validate(ctx: RunContext, state: State) -> dict[str, Any]:
    """Read the values of the cells, and find the invalid rows."""
    rows = list(report_of(ctx).rows.all())
    for row in rows:
        try:
            vars(row).update(sheets.sale(row.cells), problem="")
        except sheets.SheetError as problem:
            row.problem = str(problem)[:200]
    Row.objects.bulk_create(
        rows,
        batch_size=1000,
        update_conflicts=True,  # All are there by now: one statement writes over a thousand.
        unique_fields=("pk",),
        update_fields=("day", "region", "product", "quantity", "amount", "problem"),
    )
    refused = [{"line": row.line, "problem": row.problem} for row in rows if row.problem]
    if len(refused) == len(rows):
        raise sheets.SheetError(f"No row can be used. The first: {refused[0]['problem']}")
    return {
        "used": len(rows) - len(refused),
        "left_out": len(refused),
        "problems": refused[:SHOWN_PROBLEMS],
    }


def aggregate(ctx: RunContext, state: State) -> dict[str, Any]:
    """Add up the rows by month, region and product."""
    sales = report_of(ctx).rows.filter(problem="")
    total = sales.aggregate(revenue=Sum("amount"), quantity=Sum("quantity"), sales=Count("pk"))
    months = sales.values(month=TruncMonth("day")).annotate(revenue=Sum("amount"))
    newest = list(months.order_by("-month")[:SHOWN_MONTHS])[::-1]
    state["totals"] = {
        **total,
        "revenue": _money(total["revenue"]),
        "months": [
            {"name": f"{m['month']:%b %Y}", "revenue": _money(m["revenue"])} for m in newest
        ],
        "regions": _shares(sales, "region"),
        "products": _shares(sales, "product"),
    }
    return dict(state["totals"])


def chart(ctx: RunContext, state: State) -> str:
    """Draw the months as SVG. The template escapes its context."""
    months = state["totals"]["months"]
    longest = max(float(month["revenue"]) for month in months) or 1
    bars = [
        {**month, "y": 28 * n, "width": round(220 * float(month["revenue"]) / longest)}
        for n, month in enumerate(months)
    ]
    return render_to_string("reports/chart.svg", {"bars": bars, "height": 28 * len(bars)})


async def summarise(ctx: RunContext, state: State) -> str:
    """Let an agent explain the figures."""
    return str(await ctx.run_agent(analyst(), json.dumps(state["totals"])))


REPORT = Pipeline(
    [
        Step("parse", parse, description="Reading the file"),
        Step("validate", validate, description="Checking the rows"),
        Step("aggregate", aggregate, description="Adding up"),
        Step("chart", chart, description="Drawing the chart"),
        Step("summarise", summarise, description="Writing the summary", retries=2, timeout=120),
    ]
)


def agents() -> dict[str, Pipeline]:
    """Return the pipeline under its key."""
    return {AGENT_KEY: REPORT}


def analyst() -> Agent[Any]:
    """Return the agent that writes, on OpenAI's model where there is a key, else offline."""
    offline = DemoModel(pause=getattr(settings, "SHOP_DEMO_MODEL_PAUSE", 0.04), answer=summary)
    has_key = os.environ.get("OPENAI_API_KEY")
    model = os.environ.get("OPENAI_MODEL") if has_key else offline
    return Agent(name="Analyst", instructions=INSTRUCTIONS, model=model)


def report_of(ctx: RunContext) -> Report:
    """Return the run's report. Whoever starts a run may name any, and only gets their own."""
    return Report.objects.get(pk=ctx.params["report"], owner=ctx.user)


def _shares(sales: QuerySet[Row], column: str) -> list[dict[str, Any]]:
    parts = sales.values(column).annotate(revenue=Sum("amount")).order_by("-revenue", column)[:8]
    return [{"name": part[column], "revenue": _money(part["revenue"])} for part in parts]


def _money(amount: Any) -> str:
    return f"{amount:.2f}"
