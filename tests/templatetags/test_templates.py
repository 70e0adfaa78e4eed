"""What a person sees: fragments, pages, and how they behave in a browser."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.template.loader import render_to_string
from django.test import Client, RequestFactory
from django.utils import timezone
from django.utils.translation import override
from playwright.sync_api import Page, expect

from agentic_django import conf, services
from agentic_django.engine.events import EventType
from agentic_django.models import AgentEvent, AgentRun, AgentSession
from agentic_django.presentation.conversation import messages
from tests.support.rows import make_events, write
from tests.support.statements import at_most

Status = AgentRun.Status
FRAGMENT = "agentic_django/partials/run_fragment.html"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' onload=alert(1)"


class Elements(HTMLParser):
    """The elements of HTML, each with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def session(user: User) -> AgentSession:
    return AgentSession.objects.create(
        owner=user, session_key="talk", agent_key="support", title="Order 1042"
    )


@pytest.fixture
def run(session: AgentSession) -> AgentRun:
    return AgentRun.objects.create(
        session=session, agent_key="support", input_payload="Where is order 1042?"
    )


def tell(run: AgentRun, event_type: str, **payload: Any) -> None:
    run.event_count += 1
    AgentEvent.objects.create(
        run=run,
        sequence=run.event_count,
        event_type=event_type,
        visibility="user",
        payload=payload,
    )


def call_tool(run: AgentRun, tool: str, arguments: Any, *output: Any) -> None:
    tell(run, EventType.TOOL_CALLED, call_id="c1", tool=tool, arguments=arguments, agent="a")
    for value in output:
        told = {"call_id": "c1", "tool": tool, "output": value, "duration_seconds": 0.12}
        tell(run, EventType.TOOL_OUTPUT, **told)


def become(run: AgentRun, status: str, **fields: Any) -> AgentRun:
    now = timezone.now()
    run.status = status
    run.started_at, run.finished_at = now - timedelta(seconds=12), now
    for name, value in fields.items():
        setattr(run, name, value)
    write(run)
    return run


def loaded(run: AgentRun) -> AgentRun:
    """Return a run as the views load it."""
    return (
        AgentRun.objects.select_related("session").with_queue_position().with_steps().get(pk=run.pk)
    )


def shown(run: AgentRun, **context: Any) -> str:
    html: str = render_to_string(FRAGMENT, {"run": loaded(run), **context})
    return html


def root(html: str) -> dict[str, str | None]:
    return Elements(html).found[0][1]


# The fragment


@pytest.mark.parametrize("status", Status.values)
def test_fragment_shows_every_status_from_the_run_alone(run: AgentRun, status: str) -> None:
    html = shown(become(run, status))
    assert root(html)["id"] == f"run-container-{run.pk}"
    assert root(html)["data-status"] == status
    assert "Where is order 1042?" in html
    assert 'role="status"' not in html  # The page has one such line, outside of what is swapped.


@pytest.mark.parametrize("status", Status.values)
def test_fragment_of_a_loaded_run_takes_no_statement(run: AgentRun, status: str) -> None:
    call_tool(run, "find_order", {"number": 1042}, "delivered")
    fresh = loaded(become(run, status))
    with at_most(1 if status == "waiting" else 0):  # What it asks.
        render_to_string(FRAGMENT, {"run": fresh, "csrf_token": "t"})


def test_fragment_of_any_run_needs_nothing_prepared(run: AgentRun) -> None:
    call_tool(run, "find_order", {"number": 1042}, "delivered")
    write(run)
    html = render_to_string(FRAGMENT, {"run": AgentRun.objects.get(pk=run.pk)})
    assert "find_order" in html


@pytest.mark.parametrize("status", ["pending", "running", "waiting"])
def test_unfinished_run_polls(run: AgentRun, status: str, settings: Any) -> None:
    settings.AGENTIC_DJANGO_POLL_SECONDS = 2.5
    fresh = loaded(become(run, status))
    attributes = root(render_to_string(FRAGMENT, {"run": fresh}))
    assert attributes["hx-get"] == f"/agents/runs/{run.pk}/fragment/?v={fresh.version}"
    assert attributes["hx-trigger"] == "every 2.5s, agentic-changed"
    assert attributes["hx-swap"] == "outerHTML settle:0"


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "timed_out"])
def test_finished_run_does_not_poll(run: AgentRun, status: str) -> None:
    assert not [name for name in root(shown(become(run, status))) if name.startswith("hx-")]


def test_completed_run_shows_its_answer(run: AgentRun) -> None:
    html = shown(become(run, "completed", final_output="It is **on its way**."))
    assert "<strong>on its way</strong>" in html
    assert "Done in 12 s" in html


def test_structured_answer_is_a_table(run: AgentRun) -> None:
    html = shown(become(run, "completed", final_output=[{"item": "Mug", "pieces": 2}]))
    assert '<th scope="col">Pieces</th>' in html
    assert '<td dir="auto">2</td>' in html


def test_failed_run_shows_the_reason_and_advice(run: AgentRun) -> None:
    html = shown(
        become(run, "failed", error_code="max_turns", error="x", error_detail="Traceback secret")
    )
    assert 'role="alert"' in html
    assert "The agent reached its step limit." in html
    assert "Retry continues from the last saved step." in html
    assert str(run.pk) in html
    assert "secret" not in html


@pytest.mark.parametrize(
    ("status", "fields", "words"),
    [
        ("pending", {}, "Queued"),
        (
            "pending",
            {"failures": 1},
            "Reconnecting… Another worker continues from the last saved step.",
        ),
        ("running", {"activity": "Reading the policy…"}, "Reading the policy…"),
        ("running", {}, "Working…"),
        ("waiting", {}, "Waiting for approval"),
        ("cancelled", {}, "Stopped after 12 s"),
        ("cancelled", {"started_at": None}, "Stopped before it started"),
        ("timed_out", {}, "Timed out after 12 s"),
    ],
)
def test_status_is_shown_in_words(
    run: AgentRun, status: str, fields: dict[str, Any], words: str
) -> None:
    assert words in shown(become(run, status, **fields))


def test_queue_position_is_shown(session: AgentSession, run: AgentRun) -> None:
    later = AgentRun.objects.create(session=session, agent_key="support", input_payload="And?")
    moment = timezone.now() + timedelta(seconds=1)  # The clock of SQLite counts milliseconds.
    AgentRun.objects.filter(pk=later.pk).update(created_at=moment)
    assert "Queued, 1 ahead of you" in shown(later)


def test_orphaned_run_says_that_another_worker_continues(run: AgentRun) -> None:
    ended = timezone.now() - timedelta(seconds=1)
    assert "Reconnecting… Another worker continues from the last saved step." in shown(
        become(run, "running", lease_ends_at=ended)
    )


def test_running_run_shows_its_elapsed_time_after_ten_seconds(run: AgentRun) -> None:
    assert ">12 s</span>" in shown(become(run, "running"))
    started = timezone.now() - timedelta(seconds=5)
    assert "5 s</span>" not in shown(become(run, "running", started_at=started))


def test_time_between_attempts_does_not_count(run: AgentRun) -> None:
    now = timezone.now()
    times = {
        "attempt": 2,
        "started_at": now - timedelta(days=1),
        "active_seconds": 3660.0,
        "lease_ends_at": now + timedelta(seconds=conf.settings.LEASE_SECONDS - 180),
    }
    assert ">1 h 4 m</span>" in shown(become(run, "running", **times))
    assert "Done in 1 h 1 m" in shown(become(run, "completed", final_output="Yes", **times))
    never_again = {**times, "active_seconds": 0.0}
    assert "Stopped before it started" in shown(become(run, "cancelled", **never_again))


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("owner", "You stopped this before it started"),
        ("staff", "Stopped by staff before it started"),
        ("a nightly job", "Stopped before it started"),
        ("", "Stopped before it started"),
    ],
)
def test_stopped_run_names_the_person_who_stopped_it(
    run: AgentRun, other_user: User, by: str, words: str
) -> None:
    who = {"owner": run.owner, "staff": other_user, "": None}.get(by, by)
    assert words in shown(loaded(services.cancel_agent_run(run, by=who)))
    services.retry_agent_run(run, by=run.owner)
    run.refresh_from_db()
    assert words not in shown(loaded(run))


def test_interrupted_run_was_stopped_by_its_owner(session: AgentSession, run: AgentRun) -> None:
    services.submit_agent_run(
        owner=session.owner,
        session_key=session.session_key,
        agent_key="echo",
        input_payload="Rather this",
        on_busy="interrupt",
    )
    run.refresh_from_db()
    assert "You stopped this before it started" in shown(loaded(run))


def test_tool_call_is_a_line_that_opens(run: AgentRun) -> None:
    call_tool(run, "find_order", {"number": 1042}, "delivered")
    html = shown(become(run, "running"))
    for expected in ("find_order", "number 1042", "0.12 s", "delivered"):
        assert expected in html
    assert f'<details class="agentic-call" id="run-{run.pk}-call-1">' in html


@pytest.mark.parametrize(("status", "words"), [("running", "running"), ("failed", "no result")])
def test_tool_call_without_a_result_says_so(run: AgentRun, status: str, words: str) -> None:
    call_tool(run, "find_order", {"number": 1042})
    assert words in shown(become(run, status))


@pytest.mark.parametrize(
    ("status", "addresses"),
    [
        ("pending", ["cancel"]),
        ("running", ["cancel"]),
        ("waiting", ["cancel"]),
        ("completed", []),
        ("failed", ["retry"]),
        ("cancelled", ["retry"]),
        ("timed_out", ["retry"]),
    ],
)
def test_run_shows_the_buttons_of_its_status(
    run: AgentRun, status: str, addresses: list[str]
) -> None:
    elements = Elements(shown(become(run, status), csrf_token="t")).found
    forms = [attributes for tag, attributes in elements if tag == "form"]
    expected = [f"/agents/runs/{run.pk}/{name}/" for name in addresses]
    assert [form["action"] for form in forms] == expected
    assert [form["hx-post"] for form in forms] == expected
    tokens = [a for _, a in elements if a.get("name") == "csrfmiddlewaretoken"]
    assert len(tokens) == len(forms)


def test_fragment_works_in_another_language_with_its_own_numbers(
    run: AgentRun, settings: Any
) -> None:
    settings.USE_THOUSAND_SEPARATOR = True
    with override("de"):
        html = shown(become(run, "running", event_count=1234))
    assert "1234" in (root(html)["data-version"] or "")
    assert "every 1s" in html


# Hostile text


@pytest.mark.parametrize("status", Status.values)
def test_text_from_anywhere_cannot_become_markup(run: AgentRun, status: str) -> None:
    call_tool(run, EVIL, {EVIL: EVIL}, EVIL)
    fields = {"final_output": EVIL, "activity": EVIL, "error": EVIL, "error_code": EVIL[:64]}
    html = shown(become(run, status, input_payload=EVIL, agent_key=EVIL[:100], **fields))
    for tag, attributes in Elements(html).found:
        assert tag not in ("script", "img", "style", "iframe")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("output", [{EVIL: EVIL}, [{EVIL: EVIL}], [EVIL], {"a": {EVIL: [EVIL]}}])
def test_structured_answer_cannot_become_markup(run: AgentRun, output: Any) -> None:
    html = shown(become(run, "completed", final_output=output))
    assert "alert(1)" in html
    assert not {"script", "img"} & {tag for tag, _ in Elements(html).found}


def test_lone_surrogates_of_a_tool_do_not_break_the_page(run: AgentRun) -> None:
    call_tool(run, "find_order", {"a": "\ud800"}, "\0\udfff")
    shown(become(run, "completed", final_output="\ud800")).encode()


def test_items_cannot_become_markup() -> None:
    items = [
        {"role": "user", "content": EVIL},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": EVIL}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": EVIL}]},
        {"type": "function_call", "call_id": EVIL, "name": EVIL, "arguments": EVIL},
        {"type": "function_call_output", "call_id": EVIL, "output": EVIL},
    ]
    html = render_to_string("agentic_django/partials/messages.html", {"messages": messages(items)})
    assert html.count("alert(1)") >= 5
    assert not {"script", "img"} & {tag for tag, _ in Elements(html).found}


# Pages


def test_page_of_a_run_shows_its_events(client: Client, run: AgentRun) -> None:
    call_tool(run, "find_order", {"number": 1042}, "delivered")
    become(run, "completed", final_output="Here.", usage={"requests": 2, "total_tokens": 2318})
    html = client.get(f"/agents/runs/{run.pk}/", headers={"accept": "text/html"}).text
    for expected in ("2,318", "Tool finished", "find_order", "Completed", "/sessions/talk/"):
        assert expected in html


def test_page_of_a_run_shows_its_owner_debug_events_where_that_is_set(
    client: Client, run: AgentRun, settings: Any
) -> None:
    make_events(run, 1, event_type="log", visibility="debug", payload={"message": "Looked twice"})
    path = f"/agents/runs/{run.pk}/"
    assert "Looked twice" not in client.get(path, headers={"accept": "text/html"}).text
    settings.AGENTIC_DJANGO_SHOW_DEBUG_EVENTS = True
    assert "Looked twice" in client.get(path, headers={"accept": "text/html"}).text


def test_page_of_a_conversation_has_its_turns_and_a_composer(client: Client, run: AgentRun) -> None:
    html = client.get("/agents/sessions/talk/", headers={"accept": "text/html"}).text
    assert "<h1>Order 1042</h1>" in html
    assert f'id="run-container-{run.pk}"' in html
    assert "<textarea" in html


def test_page_declares_its_language_and_direction(client: Client, run: AgentRun) -> None:
    request = RequestFactory().get("/")
    context = {"problem": {"title": "Not found", "detail": "", "status": 404}}
    with override("ar"):
        html = render_to_string("agentic_django/problem.html", context, request)
    assert '<html lang="ar" dir="rtl">' in html


def test_pages_contain_no_inline_script_or_style(client: Client, run: AgentRun) -> None:
    for path in (f"/agents/runs/{run.pk}/", "/agents/sessions/talk/"):
        html = client.get(path, headers={"accept": "text/html"}).text
        for tag, attributes in Elements(html).found:
            assert tag != "style"
            assert tag != "script" or attributes.get("src")
            assert not [n for n in attributes if n == "style" or n.startswith(("on", "hx-on"))]


# Overriding


def templates_in(directory: Path, settings: Any) -> None:
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(directory)]}]


def test_host_overrides_one_piece(run: AgentRun, settings: Any, tmp_path: Path) -> None:
    piece = tmp_path / "agentic_django/partials/tool_call.html"
    piece.parent.mkdir(parents=True)
    piece.write_text("<p>My own card of {{ call.name }}: {{ call.output_text }}</p>")
    templates_in(tmp_path, settings)
    call_tool(run, "find_order", {"number": 1042}, "delivered")
    assert "My own card of find_order: delivered" in shown(become(run, "running"))


def test_host_replaces_the_base_template(
    client: Client, run: AgentRun, settings: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.html").write_text(
        "<title>{% block title %}{% endblock %}</title>"
        "<h6>Mine</h6>{% block content %}{% endblock %}"
    )
    templates_in(tmp_path, settings)
    settings.AGENTIC_DJANGO_BASE_TEMPLATE = "mine.html"
    html = client.get(f"/agents/runs/{run.pk}/", headers={"accept": "text/html"}).text
    assert "<h6>Mine</h6>" in html
    assert "agentic-page" not in html
    assert f'id="run-container-{run.pk}"' in html


# In a browser


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
def test_running_run_becomes_its_answer_and_what_is_open_stays_open(
    visit: Callable[..., Page], run: AgentRun
) -> None:
    call_tool(run, "find_order", {"number": 1042})
    become(run, "running")
    page = visit("/agents/sessions/talk/")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator(".agentic-log summary").click()
    expect(page.get_by_text("No result yet")).to_be_visible()
    call_tool(run, "find_order", {"number": 1042}, "delivered")
    write(run)
    expect(page.get_by_text("delivered")).to_be_visible()
    expect(page.locator(".agentic-log summary")).to_be_focused()
    become(run, "completed", final_output="It is **here**.")
    expect(page.locator("strong", has_text="here")).to_be_visible()
    expect(page.get_by_text("delivered")).to_be_visible()
    asked.clear()
    page.wait_for_timeout(1500)
    assert [url for url in asked if "/turns/" not in url] == []


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
def test_page_around_a_run_follows_it(visit: Callable[..., Page], run: AgentRun) -> None:
    become(run, "running", finished_at=None)
    page = visit(f"/agents/runs/{run.pk}/")
    expect(page.locator(".agentic-pill")).to_have_text("Running")
    page.locator("summary").get_by_text("Events").click()
    tell(run, EventType.RUN_COMPLETED, output="Here.")
    become(run, "completed", final_output="Here.")
    expect(page.locator(".agentic-pill")).to_have_text("Completed")
    expect(page.get_by_role("cell", name="Completed")).to_be_visible()


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
def test_sent_message_is_answered_and_the_composer_emptied(
    visit: Callable[..., Page], session: AgentSession
) -> None:
    AgentSession.objects.update(agent_key="echo")
    page = visit("/agents/sessions/talk/")
    expect(page.get_by_text("No messages yet")).to_be_visible()
    page.get_by_label("Message").fill("Hello")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("You said: Hello")).to_be_visible()
    expect(page.get_by_label("Message")).to_have_value("")
    expect(page.get_by_label("Message")).to_be_focused()
    expect(page.get_by_text("No messages yet")).to_be_hidden()


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
def test_rejected_message_is_kept_with_the_reason(
    visit: Callable[..., Page], session: AgentSession, settings: Any, problems: Any
) -> None:
    problems.allow("status of 429")
    settings.AGENTIC_DJANGO_RATE_LIMIT = "1/d"
    AgentSession.objects.update(agent_key="echo")
    page = visit("/agents/sessions/talk/")
    for text in ("One", "Two"):
        page.get_by_label("Message").fill(text)
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_text("You said: One")).to_be_visible()
    expect(page.locator(".agentic-composer .agentic-problem")).to_be_visible()
    expect(page.get_by_label("Message")).to_have_value("Two")
    assert AgentRun.objects.count() == 1


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
def test_stop_button_stops_the_run_in_place(visit: Callable[..., Page], run: AgentRun) -> None:
    become(run, "running", finished_at=None)
    page = visit("/agents/sessions/talk/")
    page.locator(".agentic-run").get_by_role("button", name="Stop").click()
    expect(page.locator(".agentic-run").get_by_text("You stopped this after")).to_be_visible()
    expect(page.get_by_role("button", name="Retry")).to_be_visible()


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
def test_everything_works_without_javascript(
    open_page: Any, live_server: Any, user: User, session: AgentSession
) -> None:
    AgentSession.objects.update(agent_key="echo")
    page = open_page(base_url=live_server.url, user=user, javascript=False)
    page.goto("/agents/sessions/talk/")
    page.get_by_label("Message").fill("Hello")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("paragraph").filter(has_text="You said: Hello")).to_be_visible()
    page.get_by_role("link", name="Timeline").click()
    page.get_by_role("link", name="Order 1042").click()
    expect(page.get_by_label("Message")).to_be_visible()


@pytest.fixture
def every_state(session: AgentSession) -> AgentSession:
    """A conversation with a turn in each state, all kinds of answers and a tool call."""
    answers = ["## Hi\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\ndef f(): 1\n```", {"a": 1}]
    for number, status in enumerate([*Status.values, Status.COMPLETED]):
        if status == Status.WAITING:
            continue  # One run at a time is running or waiting.
        run = AgentRun.objects.create(
            session=session, agent_key="support", input_payload=f"{status}?"
        )
        call_tool(run, "find_order", {"number": 1042}, "delivered")
        become(run, status, final_output=answers[number % 2], error_code="timed_out")
    return session


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("look", [{}, {"dark": True, "narrow": True}], ids=["light", "dark narrow"])
def test_pages_are_accessible_and_fit_their_window(
    open_page: Any,
    live_server: Any,
    user: User,
    every_state: AgentSession,
    look: dict[str, bool],
    screenshot: Callable[..., Path],
) -> None:
    page = open_page(base_url=live_server.url, user=user, **look)
    finished = AgentRun.objects.finished().earliest("created_at")
    for name, path in {
        "conversation": "/agents/sessions/talk/",
        "run": f"/agents/runs/{finished.pk}/",
    }.items():
        page.goto(path)
        page.locator(".agentic-call summary").first.click()
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["target"]) for each in found] == []
        width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0
        screenshot(page, "-".join([name, *look]))
