"""How far a run has come: the bar, the steps and their results, in a run's fragment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.template import engines
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.translation import override
from playwright.sync_api import Page, expect

from agentic_django.models import AgentEvent, AgentRun
from agentic_django.presentation import outputs, wording
from tests.support.rows import write
from tests.support.statements import at_most

FRAGMENT = "agentic_django/partials/run_fragment.html"
EVIL = "<script>alert(1)</script><svg onload=alert(1)>"
NAMES = ("fetch", "tidy_up", "save")
PICTURE = '<svg viewBox="0 0 9 9"><rect width="9"/></svg>'


@pytest.fixture
def run(user: User) -> AgentRun:
    run = AgentRun.objects.create(owner=user, agent_key="import", input_payload=[])
    return become(run, "running")


def become(run: AgentRun, status: str, **fields: Any) -> AgentRun:
    now = timezone.now()
    run.status, run.attempt = status, 1
    run.started_at, run.lease_ends_at = now - timedelta(seconds=3), now + timedelta(minutes=1)
    for name, value in fields.items():
        setattr(run, name, value)
    write(run)
    return run


def tell(run: AgentRun, kind: str, **payload: Any) -> None:
    run.event_count += 1
    AgentEvent.objects.create(
        run=run, sequence=run.event_count, event_type=kind, visibility="user", payload=payload
    )


def step(run: AgentRun, kind: str, name: str = "fetch", **payload: Any) -> None:
    index = NAMES.index(name) if name in NAMES else 0
    tell(run, f"step.{kind}", step_name=name, step_index=index, total_steps=3, **payload)


def complete(run: AgentRun, name: str, percent: int, **payload: Any) -> None:
    step(run, "started", name, attempt=1, max_attempts=1, description=payload.pop("told", None))
    step(run, "completed", name, **{"result": None, "duration_seconds": 2.14, **payload})
    tell(run, "progress.update", progress_percent=percent, description=name)


def loaded(run: AgentRun) -> AgentRun:
    """Return a run as the views load it."""
    return (
        AgentRun.objects.select_related("session").with_queue_position().with_steps().get(pk=run.pk)
    )


def shown(run: AgentRun) -> str:
    return " ".join(render_to_string(FRAGMENT, {"run": loaded(run)}).split())


def stage(run: AgentRun) -> wording.Stage:
    (stage,) = wording.stages(loaded(run))
    return stage


# The bar


def test_a_run_without_steps_has_neither_bar_nor_list(run: AgentRun) -> None:
    html = shown(run)
    assert "<progress" not in html
    assert "agentic-stages" not in html


def test_bar_says_how_many_steps_are_done(run: AgentRun) -> None:
    complete(run, "fetch", 33)
    step(run, "started", "tidy_up", attempt=1, max_attempts=1, description="Tidying up")
    html = shown(become(run, "running", activity="Tidying up"))
    name = f"run-{run.pk}-progress"
    assert f'<label for="{name}">1 of 3 steps done</label>' in html
    assert f'<progress id="{name}" max="100" value="33"></progress>' in html
    assert '<span class="agentic-state-words"> Tidying up </span>' in html


def test_text_of_the_host_is_shown_above_the_bar(run: AgentRun) -> None:
    tell(run, "progress.update", progress_percent=42.5, description="4,250 of 10,000 embedded")
    html = shown(run)
    assert ">4,250 of 10,000 embedded</label>" in html
    assert 'value="42"' in html


@pytest.mark.parametrize(
    ("told", "percent"),
    [(-3, 0), (250, 100), ("12", 12), ("many", 0), (None, 0), ([], 0), (1e999, 0)],
)
def test_any_progress_of_a_host_makes_a_bar(run: AgentRun, told: Any, percent: int) -> None:
    told = "Infinity" if told == 1e999 else told
    tell(run, "progress.update", progress_percent=told)
    html = shown(run)
    assert f'value="{percent}"' in html
    assert ">Progress</label>" in html


def test_error_of_a_step_is_in_the_readers_language(run: AgentRun) -> None:
    step(run, "failed", "fetch", error="The model is busy.", code="provider_busy", attempts=1)
    step(run, "failed", "save", error="Something went wrong.", code="internal", attempts=1)
    with override("de"):
        busy, internal = wording.stages(loaded(run))
    assert busy.error.startswith("Das Modell ist ausgelastet")
    assert internal.error == ""


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("message", {}),
        ("message", {"text": None}),
        ("message", {"text": 5}),
        ("step.started", {"name": "x"}),
        ("step.completed", {"step_name": ["a"]}),
        ("step.started", {"step_name": "a", "total_steps": "many"}),
        ("step.started", {"step_name": "a", "attempt": "x", "max_attempts": []}),
        ("step.failed", {"step_name": "a", "attempts": "x"}),
        ("step.completed", {"step_name": "a", "duration_seconds": "fast"}),
        ("step.completed", {"step_name": "a", "duration_seconds": 10**400}),
        ("tool.called", {"call_id": ["x"]}),
        ("tool.called", {"call_id": None, "tool": None}),
        ("tool.output", {"call_id": "x", "output": 1, "duration_seconds": "fast"}),
        ("progress.update", {"total_steps": {}}),
    ],
)
@pytest.mark.parametrize("status", ["running", "completed", "failed"])
def test_run_is_shown_for_any_event_of_a_host(
    run: AgentRun, status: str, kind: str, payload: dict[str, Any]
) -> None:
    tell(run, kind, **payload)
    step(run, "completed", "save", result=None, duration_seconds=1)
    html = shown(become(run, status, final_output={"save": "kept"}))
    assert "Save" in html


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "timed_out"])
def test_finished_run_has_no_bar(run: AgentRun, status: str) -> None:
    complete(run, "fetch", 33)
    assert "<progress" not in shown(become(run, status))


# The steps


def test_steps_are_listed_in_order_with_state_and_duration(run: AgentRun) -> None:
    complete(run, "fetch", 33, told="Fetching the files")
    complete(run, "tidy_up", 66)
    step(run, "started", "save", attempt=1, max_attempts=1)
    stages = wording.stages(loaded(run))
    assert [(s.label, s.state, s.words, s.seconds) for s in stages] == [
        ("Fetching the files", "done", "done", 2.14),
        ("Tidy up", "done", "done", 2.14),
        ("Save", "busy", "running", None),
    ]
    html = shown(run)
    assert html.count('<span class="agentic-took">done · 2.1 s</span>') == 2
    assert html.count('data-state="done"') == 2


def test_retrying_step_says_why_and_how_often(run: AgentRun) -> None:
    step(run, "started", attempt=1, max_attempts=3)
    step(run, "retrying", attempt=2, max_attempts=3, error="OSError: gone", retry_delay=1.0)
    assert stage(run) == wording.Stage(
        "Fetch", "waiting", "retrying, attempt 2 of 3", error="OSError: gone"
    )
    step(run, "started", attempt=2, max_attempts=3)
    assert stage(run) == wording.Stage("Fetch", "busy", "running, attempt 2 of 3")
    step(run, "completed", result=1, duration_seconds=1)
    assert stage(run).error == ""


@pytest.mark.parametrize(("attempts", "words"), [(1, "failed"), (3, "failed after 3 attempts")])
def test_a_step_that_failed_says_why(run: AgentRun, attempts: int, words: str) -> None:
    step(run, "started", attempt=attempts, max_attempts=attempts)
    step(run, "failed", error=f"ValueError: {EVIL}", attempts=attempts)
    html = shown(become(run, "failed", error_code="step_failed"))
    assert f'<span class="agentic-took">{words}</span>' in html
    assert "ValueError: &lt;script&gt;" in html
    assert "A step failed." in html


@pytest.mark.parametrize(
    ("status", "fields", "words"),
    [
        ("pending", {"failures": 1}, "interrupted"),
        ("running", {"lease_ends_at": timezone.now() - timedelta(hours=1)}, "interrupted"),
        ("waiting", {}, "interrupted"),
        ("cancelled", {}, "stopped"),
        ("timed_out", {}, "stopped"),
    ],
)
def test_step_is_running_only_while_its_run_is(
    run: AgentRun, status: str, fields: dict[str, Any], words: str
) -> None:
    step(run, "started", attempt=1, max_attempts=1)
    assert stage(become(run, status, **fields)).words == words


def test_results_of_an_earlier_attempt_are_shown_as_reused(run: AgentRun) -> None:
    complete(run, "fetch", 33, told="Fetching the files")
    step(run, "skipped", reason="already_completed")
    assert stage(run) == wording.Stage("Fetching the files", "done", "reused", 2.14)
    assert ">1 of 3 steps done</label>" in shown(run)


def test_steps_of_a_completed_run_open_from_a_line(run: AgentRun) -> None:
    for percent, name in zip((33, 66, 100), NAMES, strict=True):
        complete(run, name, percent)
    html = shown(become(run, "completed", final_output={}))
    assert f'<details class="agentic-call" id="run-{run.pk}-stages">' in html
    assert ">3 steps</span>" in html


def test_steps_are_in_german(run: AgentRun) -> None:
    complete(run, "fetch", 33)
    with override("de"):
        html = shown(run)
    assert ">1 von 3 Schritten fertig</label>" in html
    assert "fertig · 2,1 s" in html


@pytest.mark.parametrize("status", AgentRun.Status.values)
def test_fragment_of_a_loaded_pipeline_takes_no_statement(run: AgentRun, status: str) -> None:
    complete(run, "fetch", 33, result={"a": [1, {"b": 2}]})
    step(run, "started", "save", attempt=1, max_attempts=1)
    fresh = loaded(become(run, status, final_output={"fetch": {"a": [1, {"b": 2}]}}))
    with at_most(1 if status == "waiting" else 0):  # What it asks.
        render_to_string(FRAGMENT, {"run": fresh})


# What they came to


def came_to(run: AgentRun, results: dict[str, Any]) -> AgentRun:
    for name, result in results.items():
        complete(run, name, 100, result=result)
    return loaded(become(run, "completed", final_output=results))


def test_short_results_are_facts(run: AgentRun) -> None:
    output = outputs.run_output(came_to(run, {"fetch": 12, "tidy_up": True}))
    assert (output.kind, output.rows) == ("facts", [("Fetch", "12"), ("Tidy up", "yes")])


def test_the_last_result_is_the_answer_and_the_others_are_a_line_each(run: AgentRun) -> None:
    rows = [{"name": f"n{n}", "size": n} for n in range(30)]
    results = {"fetch": {"rows": 4000, "columns": ["a"]}, "tidy_up": rows, "save": "All **well**."}
    output = outputs.run_output(came_to(run, results))
    assert [(s.label, s.output.kind, s.summary) for s in output.sections] == [
        ("Fetch", "json", "Rows: 4000"),
        ("Tidy up", "table", "30 entries"),
        ("Save", "text", "All **well**."),
    ]
    html = shown(run)
    assert html.count("<details") == 1 + 2
    assert "<strong>well</strong>" in html
    assert html.count("<tr>") == 1 + 20
    assert "and 10 more" in html


def test_long_results_are_shortened(run: AgentRun) -> None:
    results = {"fetch": "x" * 200_000, "tidy_up": [[n] for n in range(50_000)], "save": "Saved."}
    came_to(run, results)
    assert len(shown(run)) < 60_000


@pytest.mark.parametrize("value", [EVIL, PICTURE, {EVIL: EVIL}, [{EVIL: [EVIL]}]])
@pytest.mark.parametrize("place", ["fetch", "save"])
def test_markup_among_the_results_is_shown_as_its_source(
    run: AgentRun, place: str, value: Any
) -> None:
    came_to(run, {"fetch": {"long": ["x"]}, "save": {"long": ["x"]}, place: value})
    html = shown(run)
    assert "&lt;" in html
    for tag in ("<script", "<svg", "<rect"):
        assert tag not in html


def test_empty_result_is_left_out(run: AgentRun) -> None:
    output = outputs.run_output(came_to(run, {"fetch": None, "save": {"to": ["here"]}}))
    assert [section.label for section in output.sections] == ["Save"]
    assert outputs.run_output(came_to(run, {"fetch": None})).kind == "facts"


def test_text_of_an_agent_within_a_step_is_not_repeated_above_its_result(run: AgentRun) -> None:
    tell(run, "message", text="On my way.", agent="a")
    tell(run, "message", text="All is well.", agent="a")
    came_to(run, {"fetch": {"rows": [1]}, "save": "All is well."})
    html = shown(run)
    assert html.count("All is well.") == 1
    assert "On my way." in html


def test_answers_of_an_agent_are_not_results_of_steps(run: AgentRun) -> None:
    become(run, "completed", final_output={"fetch": {"rows": [1]}})
    assert outputs.run_output(loaded(run)).kind == "json"


def test_host_overrides_the_template_of_an_answer(
    run: AgentRun, settings: Any, tmp_path: Path
) -> None:
    template = tmp_path / "agentic_django/output/import.html"
    template.parent.mkdir(parents=True)
    template.write_text("<b>{{ run.pk }}</b>{{ run.final_output.fetch|safe }} {{ output.kind }}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    came_to(run, {"fetch": PICTURE, "save": {"to": ["here"]}})
    assert f"<b>{run.pk}</b>{PICTURE} steps" in shown(run)
    run.agent_key = "other"
    write(run)
    assert PICTURE not in shown(run)
    assert engines["django"].dirs == [tmp_path]


# In a browser


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("look", [{}, {"dark": True, "narrow": True}], ids=["light", "dark narrow"])
def test_progress_is_accessible_and_becomes_a_line(
    open_page: Any,
    live_server: Any,
    user: User,
    run: AgentRun,
    look: dict[str, bool],
    screenshot: Callable[..., Path],
) -> None:
    complete(run, "fetch", 33, told="Fetching the files", result={"files": 12, "names": ["a"]})
    step(run, "started", "tidy_up", attempt=1, max_attempts=3)
    step(run, "retrying", "tidy_up", attempt=2, max_attempts=3, error="OSError: the disk is full")
    become(run, "running", activity="Tidy up")
    page = open_page(base_url=live_server.url, user=user, **look)
    page.goto(f"/agents/runs/{run.pk}/")
    bar = page.get_by_role("progressbar", name="1 of 3 steps done")
    expect(bar).to_have_attribute("value", "33")
    check(page)
    screenshot(page, f"progress-running-{'-'.join(look)}")
    step(run, "completed", "tidy_up", result=PICTURE, duration_seconds=0.2)
    results = {"fetch": {"files": 12, "names": ["a"]}, "tidy_up": PICTURE, "save": {"kept": 12}}
    complete(run, "save", 100, result=results["save"])
    become(run, "completed", final_output=results, finished_at=timezone.now())
    expect(page.locator(".agentic-run[data-status=completed]")).to_be_visible()
    expect(bar).to_have_count(0)
    for line in page.locator(".agentic-run summary").all():
        line.click()
    expect(page.get_by_text("Fetching the files")).to_be_visible()
    check(page)
    screenshot(page, f"progress-completed-{'-'.join(look)}")


def check(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["target"]) for each in found] == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
