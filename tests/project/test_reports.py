"""The example's reports: a file in, figures that are right, a chart and a summary out."""

from __future__ import annotations

import csv
import io
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from agentic_django.models import AgentRun
from example.reports import sheets
from example.reports.models import Report
from example.reports.sample import BAD, NAME, ROWS, sample

pytestmark = pytest.mark.django_db(transaction=True)

HEAD = "date,region,product,quantity,price\n"
GOOD = HEAD + "2026-03-14,North,Whisk,2,8.50\n2026-04-01,South,Teapot,1,24.00\n"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def desk(settings: Any, tmp_path: Path) -> None:
    settings.ROOT_URLCONF = "example.urls"
    settings.LOGIN_URL = "login"
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = "example.reports.pipeline.agents"
    settings.AGENTIC_DJANGO_BASE_TEMPLATE = "shop/base.html"
    settings.MEDIA_ROOT = tmp_path
    settings.SHOP_DEMO_MODEL_PAUSE = 0


def upload(client: Client, text: str | bytes, name: str = "sales.csv") -> Any:
    data = text.encode() if isinstance(text, str) else text
    file = SimpleUploadedFile(name, data, "text/csv")
    return client.post("/reports/", {"file": file}, follow=True)


def results() -> dict[str, Any]:
    run = AgentRun.objects.get()
    assert run.status == "completed", run.error_detail
    return run.final_output


def sales_of(data: bytes) -> list[tuple[str, str, int, Decimal]]:
    """Read a file independently: month, region, quantity and amount of each good row."""
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    good = [row for number, row in enumerate(rows) if number not in BAD]
    return [
        (
            row["date"][:7],
            row["region"],
            int(row["quantity"]),
            int(row["quantity"]) * Decimal(row["price"]),
        )
        for row in good
    ]


def test_the_samples_figures_are_those_of_its_rows(client: Client) -> None:
    client.post("/reports/sample.csv")
    found, sales = results(), sales_of(sample())
    assert found["parse"] == {"rows": ROWS}
    assert (found["validate"]["used"], found["validate"]["left_out"]) == (len(sales), len(BAD))
    totals = found["aggregate"]
    assert totals["sales"] == len(sales)
    assert totals["quantity"] == sum(sale[2] for sale in sales)
    assert Decimal(totals["revenue"]) == sum(sale[3] for sale in sales)
    regions: Counter[str] = Counter()
    months: Counter[str] = Counter()
    for month, region, _, amount in sales:
        regions[region] += amount  # type: ignore[assignment]
        months[month] += amount  # type: ignore[assignment]
    assert totals["regions"] == [
        {"name": name, "revenue": f"{amount:.2f}"} for name, amount in regions.most_common()
    ]
    assert [Decimal(m["revenue"]) for m in totals["months"]] == [
        months[month] for month in sorted(months)
    ]
    assert found["chart"].count("<rect") == len(months) == 12


def test_every_row_that_cannot_be_used_is_named_with_its_reason(client: Client) -> None:
    client.post("/reports/sample.csv")
    problems = results()["validate"]["problems"]
    assert [problem["line"] - 2 for problem in problems] == sorted(BAD)  # Behind the first line.
    assert "'two' is not a number" in problems[1]["problem"]
    assert "31.12.2025" in problems[0]["problem"]


def test_a_report_is_shown_with_summary_figures_chart_and_tables(client: Client) -> None:
    page = upload(client, GOOD).text
    for text in ("sales.csv", "41.00", "<svg", "Revenue by month", "Mar 2026", "Whisk", "5 steps"):
        assert text in page
    assert "<strong>41.00</strong>" in page  # The summary's Markdown.


def test_semicolons_and_a_byte_order_mark_are_read(client: Client) -> None:
    upload(client, ("\ufeff" + GOOD).replace(",", ";"))
    assert results()["aggregate"]["revenue"] == "41.00"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("sales.txt", GOOD, "ends in .csv"),
        ("sales.csv", b"\xff\xfe\x00a", "not text in UTF-8"),
        ("sales.csv", b"a\x00b", "not a text file"),
        ("sales.csv", "date,region\n1,2\n", "names no column &#x27;product&#x27;"),
        ("sales.csv", HEAD, "no rows below"),
        ("sales.csv", HEAD + "2026-01-01,N,P,1,1\n" * (sheets.MAX_ROWS + 1), "20,000 are allowed"),
        ("sales.csv", HEAD + 'x,"' + "y" * 140_000, "cannot be read"),
        ("sales.csv", HEAD + "x" * (5 * 1024 * 1024), "are allowed"),
        ("sales.csv", "", "is empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words_and_starts_nothing(
    client: Client, name: str, text: str | bytes, said: str
) -> None:
    page = upload(client, text, name)
    assert page.status_code == 200
    assert said in page.text
    assert not Report.objects.exists()
    assert not AgentRun.objects.exists()


def test_a_file_without_a_row_that_can_be_used_fails_with_the_reason(client: Client) -> None:
    page = upload(client, HEAD + "soon,North,Whisk,1,1\n").text
    run = AgentRun.objects.get()
    assert (run.status, run.error_code) == ("failed", "step_failed")
    assert "No row can be used" in page
    assert "is not a date" in page


def test_what_a_file_says_is_text(client: Client) -> None:
    page = upload(client, f"{HEAD}2026-03-14,{EVIL},{EVIL},1,1\nx,{EVIL},,1,1\n", f"{EVIL}.csv")
    assert results()["aggregate"]["regions"][0]["name"] == EVIL
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text


def test_reports_are_their_owners(client: Client, other_client: Client) -> None:
    upload(client, GOOD)
    report = Report.objects.get()
    assert other_client.get(f"/reports/{report.pk}/").status_code == 404
    assert report.title not in other_client.get("/reports/").text
    assert report.title in client.get("/reports/").text


def test_nobody_reports_on_the_file_of_another(user: User, other_user: User, carry: Any) -> None:
    report = Report.objects.create(owner=user, title=NAME, file=ContentFile(GOOD.encode(), NAME))
    run = carry("report", "", owner=other_user, context={"report": report.pk})
    assert (run.status, run.final_output) == ("failed", None)
    assert not report.rows.exists()


def test_the_sample_can_be_downloaded_and_uploaded(client: Client) -> None:
    answer = client.get("/reports/sample.csv")
    assert answer["Content-Disposition"] == 'attachment; filename="sample.csv"'
    upload(client, answer.content)
    assert results()["parse"] == {"rows": ROWS}


def test_a_report_whose_run_was_cleared_away_says_so(client: Client) -> None:
    upload(client, GOOD)
    AgentRun.objects.all().delete()
    page = client.get(f"/reports/{Report.objects.get().pk}/")
    assert page.status_code == 200
    assert "has been cleared away" in page.text
