"""The tags and filters, in templates of a host."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.template import Context, Template
from django.utils import timezone
from django.utils.translation import override

from agentic_django.models import AgentRun, AgentSession
from agentic_django.presentation import wording
from tests.support.statements import at_most


def render(source: str, **context: Any) -> str:
    """Render a template without a request."""
    return Template("{% load agentic_django_tags %}" + source).render(Context(context))


@pytest.fixture
def session(user: User) -> AgentSession:
    return AgentSession.objects.create(owner=user, session_key="talk", agent_key="support")


def add_run(session: AgentSession, **fields: Any) -> AgentRun:
    return AgentRun.objects.create(
        session=session, agent_key="support", **{"input_payload": "Hello", **fields}
    )


# Tags


def test_run_fragment_needs_no_request(session: AgentSession) -> None:
    run = add_run(session)
    html = render("{% agent_run_fragment run %}", run=run)
    assert f'id="run-container-{run.pk}"' in html


def test_buttons_need_a_csrf_token(session: AgentSession) -> None:
    run = add_run(session)
    assert "<form" not in render("{% agent_run_fragment run %}", run=run)
    assert "<form" in render("{% agent_run_fragment run %}", run=run, csrf_token="t")


def test_conversation_takes_two_statements(session: AgentSession) -> None:
    for _ in range(5):
        add_run(session)
    with at_most(2):
        html = render("{% agent_conversation session %}", session=session)
    assert html.count('class="agentic agentic-run"') == 5
    assert 'role="log" aria-live="off"' in html


def test_conversation_that_does_not_exist_yet_is_empty() -> None:
    html = render('{% agent_conversation "new-one" %}')
    assert 'id="agentic-log-new-one"' in html
    assert "No messages yet." in html


def test_composer_writes_to_the_log_of_its_conversation(session: AgentSession) -> None:
    html = render("{% agent_composer session %}", session=session)
    assert 'hx-target="#agentic-log-talk"' in html
    assert '<input type="hidden" name="session_key" value="talk">' in html
    assert '<input type="hidden" name="agent_key" value="support">' in html


def test_composer_for_a_new_conversation_names_its_agent() -> None:
    html = render('{% agent_composer "new-one" agent_key="sales" %}')
    assert 'name="agent_key" value="sales"' in html
    assert 'name="session_key" value="new-one"' in html


def test_key_from_an_address_cannot_break_out_of_the_page() -> None:
    html = render("{% agent_conversation key %}{% agent_composer key %}", key='"><script>')
    assert "<script>" not in html


def test_assets_carry_the_nonce() -> None:
    html = render("{% agentic_django_assets %}", csp_nonce="abc")
    assert html.count('nonce="abc"') == html.count("<script") == 3
    assert "agentic_django/agentic_django.css" in html


def test_assets_need_no_nonce_and_forbid_eval() -> None:
    html = render("{% agentic_django_assets %}")
    assert "nonce" not in html
    assert "&quot;allowEval&quot;:false" in html


def test_events_are_those_that_a_user_may_see(session: AgentSession, settings: Any) -> None:
    run = add_run(session)
    for sequence, visibility in enumerate(["user", "debug", "internal"], 1):
        run.events.create(sequence=sequence, event_type="log", visibility=visibility)
    source = "{% agent_run_events run as events %}{% for e in events %}{{ e.sequence }}{% endfor %}"
    assert render(source, run=run) == "1"
    settings.AGENTIC_DJANGO_SHOW_DEBUG_EVENTS = True
    assert render(source, run=run) == "12"


@pytest.mark.parametrize(
    ("status", "is_last", "can"),
    [
        ("failed", True, "True"),
        ("timed_out", True, "True"),
        ("cancelled", True, "True"),
        ("failed", False, "False"),
        ("completed", True, "False"),
        ("running", True, "False"),
    ],
)
def test_only_the_last_run_can_be_retried(
    session: AgentSession, status: str, is_last: bool, can: str
) -> None:
    run = add_run(session, status=status)
    if not is_last:
        add_run(session)
    assert render("{% agent_can_retry run %}", run=run) == can


def test_run_outside_any_conversation_can_be_retried(user: User) -> None:
    run = AgentRun.objects.create(owner=user, agent_key="support", status="failed")
    assert render("{% agent_can_retry run %}", run=run) == "True"


# Words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (-1, "0 ms"),
        (0.003, "3 ms"),
        (0.123, "0.12 s"),
        (0.996, "1.0 s"),
        (2.14, "2.1 s"),
        (9.96, "10 s"),
        (12.4, "12 s"),
        (59.6, "1 m 0 s"),
        (161, "2 m 41 s"),
        (3900, "1 h 5 m"),
    ],
)
def test_duration_has_units(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


def test_moments_are_shown_relative_to_now() -> None:
    now = timezone.now()
    assert wording.ago(now) == "just now"
    assert wording.ago(now - timedelta(minutes=61)) == "1\xa0hour ago"


def test_numbers_have_the_readers_format() -> None:
    with override("de"):
        assert wording.duration(2.14) == "2,1 s"
        assert render("{{ n|agent_number }}", n=2318) == "2.318"


def test_poll_interval_is_not_localized(settings: Any) -> None:
    settings.AGENTIC_DJANGO_POLL_SECONDS = 1.5
    with override("de"):
        assert render("{% agent_poll_seconds %}") == "1.5"


def test_running_run_shows_its_activity() -> None:
    run = AgentRun(status="running", activity="Reading the policy…")
    assert wording.activity(run) == "Reading the policy…"
    run = AgentRun(status="running")
    run.steps = [{"tool": "a", "output": "x"}, {"tool": "find_order"}]
    assert wording.activity(run) == "Using find_order…"
    run.steps = []
    assert wording.activity(run) == "Working…"


def test_orphaned_run_is_reconnecting() -> None:
    now = timezone.now()
    alive = AgentRun(status="running", lease_ends_at=now + timedelta(minutes=1))
    lost = AgentRun(status="running", lease_ends_at=now - timedelta(minutes=1))
    assert [wording.is_reconnecting(run) for run in (alive, lost)] == [False, True]


def test_every_failure_says_what_a_person_can_do() -> None:
    from agentic_django.exceptions import MESSAGES

    for code in MESSAGES:
        run = AgentRun(error_code=code)
        text = f"{wording.reason(run)} {wording.advice(run)}"
        assert re.search("Ask for|Inform|Retry|Start|support|request|longer available", text), code


def test_unknown_error_code_has_a_sentence() -> None:
    assert wording.reason(AgentRun(error_code="no_such_code")) == wording.reason(
        AgentRun(error_code="internal")
    )


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"tool": "find_order", "output": "x"}, "find_order"),
        ({"summary": "First the order.", "agent": "Support"}, "First the order."),
        ({"agent": "Billing"}, "Billing"),
        ({"text": "a\0b"}, "a\N{REPLACEMENT CHARACTER}b"),
        ({"text": "x" * 500}, "x" * 119 + "…"),
        ({"attempt": 1}, ""),
        ({"attempt": 2, "reason": "lost"}, "The worker stopped responding"),
        ({"attempt": 2, "reason": "by ada"}, "Retry requested by ada"),
        ({"error": "It broke."}, "It broke."),
        ({"error": "x", "code": "max_turns"}, "The agent reached its step limit."),
        ({"error": "It broke.", "code": "of the host"}, "It broke."),
        ([1], ""),
        (None, ""),
    ],
)
def test_event_has_a_short_summary(payload: Any, text: str) -> None:
    assert wording.event_summary(payload) == text


def test_every_event_a_user_sees_has_words() -> None:
    from agentic_django.engine.events import EVENT_KINDS

    shown = [kind for kind, what in EVENT_KINDS.items() if what.visibility == "user"]
    assert [kind for kind in shown if wording.event(kind) == kind] == []
