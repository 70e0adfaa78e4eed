"""The pages in a browser: every one, in every look, with both versions of htmx and without."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Page, expect

from agentic_django.models import AgentEvent, AgentRun, AgentSession, ToolApproval
from agentic_django.presentation import markdown
from tests.support.browser import visiting
from tests.support.rows import make_checkpoint, make_events, make_run, make_session

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

ANSWER = """I'm sorry about that. Your order qualifies for a **full refund**:

| Item | Paid |
|---|---|
| Blue mug × 2 | 24.00 |
| Teapot | 24.00 |

```python
refund(order=1042)
```
"""


def ended(run: AgentRun, seconds: float = 12) -> None:
    started = timezone.now() - timedelta(seconds=seconds)
    AgentRun.objects.filter(pk=run.pk).update(
        started_at=started, finished_at=timezone.now(), created_at=started
    )


@pytest.fixture
def talk(user: User) -> AgentSession:
    """A conversation with an answer, a failure and a run under way, beside two others."""
    make_session(user, session_key="mugs", title="Stock of blue mugs", days_ago=1)
    old = make_session(user, session_key="old", title="Import of suppliers", days_ago=3)
    make_run(user, "failed", session=old)
    session = make_session(user, session_key="talk", agent_key="support", title="Order 1042")
    columns = {"agent_key": "support", "session": session}
    asked = "My order 1042 arrived broken. Can I have my money back?"
    run = make_run(user, "completed", input_payload=asked, **columns)
    AgentRun.objects.filter(pk=run.pk).update(
        final_output=ANSWER, attempt=2, usage={"requests": 2, "total_tokens": 2318}
    )
    ended(run)
    _tell_a_story(run)
    failed = make_run(user, "failed", input_payload="And now?", **columns)
    AgentRun.objects.filter(pk=failed.pk).update(error_code="max_turns")
    ended(failed)
    make_run(user, "running", input_payload="Still there?", **columns)
    AgentRun.objects.running().update(started_at=timezone.now())
    return session


@pytest.fixture
def asking(user: User) -> AgentRun:
    """A conversation in which a run waits for a decision, behind what it said and did."""
    session = make_session(user, session_key="asking", agent_key="support", title="Refund for 1042")
    asked = "My order 1042 arrived broken. Can I have my money back?"
    run = make_run(user, "waiting", session=session, agent_key="support", input_payload=asked)
    AgentRun.objects.filter(pk=run.pk).update(started_at=timezone.now())
    call = {"call_id": "1", "tool": "find_order", "arguments": {"number": 1042}}
    make_events(run, 1, event_type="tool.called", payload=call)
    answered = {**call, "output": "delivered 3 days ago", "duration_seconds": 0.12}
    make_events(run, 1, event_type="tool.output", payload=answered)
    make_events(run, 1, payload={"text": ANSWER, "agent": "support"})
    ToolApproval.objects.create(
        run=run,
        kind="tool",
        key="main:tool:2",
        call_id="2",
        tool="refund_order",
        agent="Support",
        arguments={"number": 1042, "amount": "48.00"},
        schema={"properties": {"number": {"type": "integer"}, "amount": {"type": "string"}}},
    )
    return run


def _tell_a_story(run: AgentRun) -> None:
    """Let a run have lost a worker, called tools and thought."""
    call = {"call_id": "1", "tool": "find_order", "arguments": {"number": 1042}}
    story: list[tuple[float, str, dict[str, Any]]] = [
        (0.2, "run.started", {"attempt": 1}),
        (1, "agent.updated", {"agent": "support"}),
        (1, "reasoning", {"summary": "First the order."}),
        (1.1, "tool.called", call),
        (1.3, "tool.output", {**call, "output": "delivered, damaged", "duration_seconds": 0.2}),
        (4, "run.retrying", {"reason": "lost"}),
        (5, "run.started", {"attempt": 2}),
        (6, "agent.updated", {"agent": "billing"}),
        (11.9, "run.completed", {}),
    ]
    start = timezone.now() - timedelta(seconds=12)
    for seconds, kind, payload in story:
        make_events(run, 1, event_type=kind, payload=payload)
        moment = start + timedelta(seconds=seconds)
        last = AgentEvent.objects.filter(run=run, sequence=run.event_count)
        last.update(created_at=moment)
    calls = [("model", "support", 1, 0.3, 0.7), ("tool", "find_order", 1, 1.1, 0.2)]
    for kind, name, attempt, at, took in [*calls, ("model", "billing", 2, 5.2, 6.0)]:
        began = start + timedelta(seconds=at)
        times = {"started_at": began, "finished_at": began + timedelta(seconds=took)}
        make_checkpoint(run, f"{at}", kind=kind, name=name, attempt=attempt, **times)


def pages() -> dict[str, str]:
    """Return the address of every page."""
    answered = AgentRun.objects.filter(session__session_key="talk").earliest("created_at")
    return {
        "conversation": "/agents/sessions/talk/",
        "asking": "/agents/sessions/asking/",
        "inbox": "/agents/approvals/",
        "new": "/agents/",
        "conversations": "/agents/sessions/",
        "archive": "/agents/sessions/?archived=1",
        "delete": "/agents/sessions/talk/delete/",
        "run": f"/agents/runs/{answered.pk}/",
        "refused": "/agents/runs/none/",
        "operations": "/admin/agentic_django/agentrun/operations/",
    }


@pytest.fixture
def staff(user: User) -> User:
    User.objects.filter(pk=user.pk).update(is_staff=True, is_superuser=True)
    return User.objects.get(pk=user.pk)


@pytest.fixture
def visit(live_server: Any, open_page: Any, staff: User) -> Callable[..., Page]:
    """Open an address as Ada, who is staff."""
    return visiting(open_page, live_server.url, staff)


@pytest.mark.parametrize("look", ["wide", "dark", "narrow", "rtl"])
def test_every_page_is_accessible_and_fits_its_window(
    visit: Callable[..., Page],
    talk: AgentSession,
    asking: AgentRun,
    look: str,
    settings: Any,
    screenshot: Callable[..., Any],
    problems: Any,
) -> None:
    problems.allow("status of 404")
    if look == "rtl":
        settings.LANGUAGE_CODE = "ar"
    page = visit("/agents/", dark=look == "dark", narrow=look == "narrow")
    if look == "narrow":
        page.set_viewport_size({"width": 320, "height": 700})
    for name, path in pages().items():
        page.goto(path)
        screenshot(page, f"{name}-{look}", whole=name not in ("conversation", "asking"))
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        found = Axe().run(page).response["violations"]
        assert [(name, e["id"], e["nodes"][0]["target"]) for e in found] == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
        assert page.evaluate("document.dir") in ("", "rtl" if look == "rtl" else "ltr")


def test_every_page_can_be_read_without_javascript(
    visit: Callable[..., Page], talk: AgentSession, screenshot: Callable[..., Any]
) -> None:
    page = visit("/agents/sessions/talk/", javascript=False)
    expect(page.get_by_text("full refund")).to_be_visible()
    expect(page.get_by_role("button", name="Copy")).to_have_count(0)
    expect(page.get_by_role("link", name="Refresh")).to_be_visible()
    expect(page.get_by_label("While the agent works")).to_be_visible()
    screenshot(page, "conversation-no-js", whole=False)
    page.get_by_role("link", name="Timeline").first.click()
    expect(page.get_by_role("row", name="Attempt 1")).to_contain_text("interrupted")
    screenshot(page, "run-no-js")


def test_conversation_is_created_renamed_archived_and_deleted_without_javascript(
    visit: Callable[..., Page], talk: AgentSession
) -> None:
    page = visit("/agents/", javascript=False)
    page.get_by_label("Agent", exact=True).select_option("echo")
    page.get_by_label("Message").fill("Hello")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("You said: Hello")).to_be_visible()
    page.get_by_text("Manage").click()
    page.get_by_label("Title").fill("Greeting")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Greeting")
    page.get_by_text("Manage").click()
    page.get_by_role("button", name="Archive").click()
    page.goto("/agents/sessions/")
    expect(page.get_by_role("link", name="Greeting")).to_have_count(0)
    page.get_by_role("link", name="Archived").click()
    page.get_by_role("link", name="Greeting").click()
    page.get_by_text("Manage").click()
    page.get_by_role("link", name="Delete").click()
    page.get_by_role("button", name="Delete permanently").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Conversations")
    assert not AgentSession.objects.filter(title="Greeting").exists()


def test_every_page_works_with_this_htmx(
    htmx: int, visit: Callable[..., Page], talk: AgentSession, asking: AgentRun, problems: Any
) -> None:
    problems.allow("status of 404")
    page = visit("/agents/")
    for path in pages().values():
        page.goto(path)
        expect(page.get_by_role("heading", level=1).first).to_be_visible()
        if "admin" not in path:
            assert page.evaluate("htmx.version").startswith(str(htmx))


def test_new_conversation_gets_its_url_and_appears_in_the_list(
    htmx: int, visit: Callable[..., Page], staff: User
) -> None:
    page = visit("/agents/?agent=echo")
    page.get_by_label("Message").fill("A first question")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("You said: A first question")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("A first question")
    expect(page.get_by_role("navigation").get_by_text("A first question")).to_be_visible()
    expect(page.get_by_label("Agent", exact=True)).to_have_count(0)
    page.reload()
    expect(page.get_by_text("You said: A first question")).to_be_visible()


def test_search_updates_while_typing_and_keeps_the_focus(
    htmx: int, visit: Callable[..., Page], talk: AgentSession
) -> None:
    page = visit("/agents/sessions/talk/")
    page.get_by_role("searchbox").press_sequentially("suppl")
    expect(page.get_by_role("navigation").get_by_text("Stock of blue mugs")).to_be_hidden()
    expect(page.get_by_role("navigation").get_by_text("Import of suppliers")).to_be_visible()
    expect(page.get_by_role("searchbox")).to_be_focused()


def test_draft_survives_a_reload_until_it_is_sent(visit: Callable[..., Page], user: User) -> None:
    make_session(user, session_key="talk", agent_key="echo")
    page = visit("/agents/sessions/talk/")
    page.get_by_label("Message").fill("Not sent yet")
    page.reload()
    expect(page.get_by_label("Message")).to_have_value("Not sent yet")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("You said: Not sent yet")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Message")).to_have_value("")


def test_draft_is_kept_while_a_run_changes(
    htmx: int, visit: Callable[..., Page], talk: AgentSession
) -> None:
    page = visit("/agents/sessions/talk/")
    box = page.get_by_label("Message")
    box.press_sequentially("Half a sen")
    AgentRun.objects.running().update(status="completed", final_output="Yes, still here.")
    expect(page.get_by_text("Yes, still here.")).to_be_visible()
    expect(box).to_be_focused()
    box.press_sequentially("tence")
    expect(box).to_have_value("Half a sentence")


def test_turn_from_another_tab_appears(htmx: int, visit: Callable[..., Page], user: User) -> None:
    session = make_session(user, session_key="talk", agent_key="echo")
    page = visit("/agents/sessions/talk/")
    expect(page.get_by_text("No messages yet")).to_be_visible()
    page.get_by_label("Message").fill("Half a sen")
    make_run(user, "completed", session=session, input_payload="By a program", final_output="Well")
    expect(page.locator(".agentic-log").get_by_text("By a program")).to_be_visible()
    expect(page.get_by_text("No messages yet")).to_be_hidden()
    expect(page.get_by_label("Message")).to_have_value("Half a sen")
    other = page.context.new_page()
    other.goto("/agents/sessions/talk/")
    other.get_by_label("Message").fill("In another tab")
    other.get_by_role("button", name="Send").click()
    for tab in (other, page):
        expect(tab.get_by_text("You said: In another tab")).to_be_visible()
        expect(tab.locator(".agentic-run")).to_have_count(2)
        said = tab.locator(".agentic-bubble").all_inner_texts()
        assert [each.split("\n")[-1] for each in said] == ["By a program", "In another tab"]


def test_reader_of_earlier_turns_is_not_scrolled(
    visit: Callable[..., Page], talk: AgentSession, user: User
) -> None:
    page = visit("/agents/sessions/talk/")
    page.set_viewport_size({"width": 1280, "height": 500})
    page.evaluate("scrollTo(0, 0)")
    AgentRun.objects.running().update(status="completed", final_output="Done.")
    make_run(user, "completed", session=talk, input_payload="Elsewhere", final_output="Well")
    expect(page.locator(".agentic-run")).to_have_count(4)
    assert page.evaluate("scrollY") == 0


def test_message_is_sent_after_or_instead_of_the_active_run(
    visit: Callable[..., Page], talk: AgentSession, no_queue: None
) -> None:
    AgentSession.objects.update(agent_key="echo")
    page = visit("/agents/sessions/talk/")
    page.get_by_label("Message").fill("Behind")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".agentic-log").get_by_text("Behind")).to_be_visible()
    assert AgentRun.objects.running().count() == 1
    page.get_by_label("While the agent works").select_option("interrupt")
    page.get_by_label("Message").fill("Instead")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".agentic-log").get_by_text("Instead")).to_be_visible()
    found = AgentRun.objects.filter(session=talk).order_by("position").values_list("status")
    assert [status for (status,) in found][-3:] == ["cancelled", "cancelled", "pending"]


def test_stop_beside_send_stops_the_active_run(
    visit: Callable[..., Page], talk: AgentSession
) -> None:
    page = visit("/agents/sessions/talk/")
    page.locator("[data-agentic-stop]").click()
    expect(page.locator(".agentic-run").get_by_text("You stopped this")).to_be_visible()
    expect(page.locator("[data-agentic-stop]")).to_be_hidden()
    expect(page.get_by_label("While the agent works")).to_be_hidden()


def test_one_status_line_announces_the_run(
    htmx: int, visit: Callable[..., Page], talk: AgentSession
) -> None:
    page = visit("/agents/sessions/talk/")
    line = page.get_by_role("status")
    expect(line).to_have_count(1)
    expect(line).to_have_text("Working…")
    assert page.get_by_role("log").get_attribute("aria-live") == "off"
    AgentRun.objects.running().update(activity="Reading the policy…", event_count=9)
    expect(line).to_have_text("Reading the policy…")
    handle = line.element_handle()
    AgentRun.objects.running().update(status="failed", error_code="max_turns")
    expect(line).to_contain_text("Failed")
    assert handle is not None
    assert handle.evaluate("node => node.isConnected")
    expect(page.get_by_role("alert").filter(has_text="step limit").last).to_be_visible()


def test_page_of_a_run_has_one_status_line(visit: Callable[..., Page], talk: AgentSession) -> None:
    page = visit(f"/agents/runs/{AgentRun.objects.running().get().pk}/")
    AgentRun.objects.running().update(activity="Reading the policy…", event_count=9)
    expect(page.get_by_role("status")).to_have_text("Reading the policy…")


def test_code_and_answers_are_copied(visit: Callable[..., Page], talk: AgentSession) -> None:
    page = visit("/agents/sessions/talk/")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".agentic-copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "refund(order=1042)"
    page.locator(".agentic-foot").get_by_role("button", name="Copy").click()
    expect(page.locator(".agentic-foot").get_by_role("button", name="Copied")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("I'm sorry about that.")
    assert "Teapot" in text


def test_failed_run_is_retried_by_keyboard_alone(
    visit: Callable[..., Page], user: User, no_queue: None
) -> None:
    session = make_session(user, session_key="talk", agent_key="echo")
    make_run(user, "failed", session=session)
    page = visit("/agents/sessions/talk/")
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.textContent.trim()")
        seen.append(name)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        framed = page.evaluate("!!document.activeElement.closest('.agentic-composer')")
        assert outline != "none" or framed, name
        if name == "Retry":
            break
    assert "Skip to content" in seen[0]
    page.keyboard.press("Enter")
    expect(page.locator(".agentic-state-words")).to_have_text("Queued")


def test_two_hundred_messages_are_painted_within_a_second(
    visit: Callable[..., Page], user: User
) -> None:
    session = make_session(user, session_key="talk", agent_key="support", title="A long one")
    for number in range(100):
        given = f"Question {number}: where is my order, and what about the other one?"
        run = make_run(user, "completed", session=session, input_payload=given)
        answer = f"{ANSWER}\n\nThat was answer {number}."
        AgentRun.objects.filter(pk=run.pk).update(final_output=answer)
    short = make_session(user, session_key="short", agent_key="support")
    make_run(user, "completed", session=short, final_output=ANSWER)
    page = visit("/agents/sessions/short/")  # What a process loads once, it has.
    painted: list[float] = []
    for _ in range(3):
        markdown._rendered.clear()  # As for one who comes first.
        page.goto("/agents/sessions/talk/")
        painted.append(page.evaluate(LARGEST_PAINT))
        expect(page.locator(".agentic-bubble")).to_have_count(100)
        expect(page.get_by_text("That was answer 99.")).to_be_in_viewport()
    assert statistics.median(painted) < 1000, painted
    print("Largest Contentful Paint, ms:", [round(each) for each in painted])


LARGEST_PAINT = """() => new Promise((resolve) => {
    new PerformanceObserver((list) => resolve(list.getEntries().at(-1).startTime))
        .observe({ type: "largest-contentful-paint", buffered: true });
})"""
