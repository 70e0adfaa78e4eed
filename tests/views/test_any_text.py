"""Pages show whatever a model, a tool or a host wrote, as far as it can be encoded."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse

from agentic_django.models import AgentSession, ToolApproval
from tests.support.rows import make_events, make_run

pytestmark = pytest.mark.django_db

LONE = "a\ud800b"
STORED = "ab" if connection.vendor == "postgresql" else LONE
"""PostgreSQL refuses a lone surrogate in the columns that may be searched."""
VALUES: list[Any] = [
    {"": None},
    {"": "empty key"},
    {"text": LONE},
    {LONE: LONE},
    {"tool": LONE},
    {"step_name": LONE},
    {"text": {"": LONE}},
    [LONE],
    LONE,
    {"code": LONE, "error": LONE},
    {"reason": LONE},
]


@pytest.fixture
def staff(client: Client, user: User) -> Client:
    user.is_staff = user.is_superuser = True
    user.save()
    return client


@pytest.mark.parametrize("payload", VALUES)
@pytest.mark.parametrize(
    "event_type",
    ["own.type", "log", "tool.called", "tool.output", "message", "reasoning", "progress.update"],
)
def test_event_with_any_payload_is_shown(
    client: Client, user: User, event_type: str, payload: Any
) -> None:
    run = make_run(user, "running")
    if isinstance(payload, dict) or event_type == "own.type":
        make_events(run, 1, event_type=event_type, payload=payload)
    for name in ("run-detail", "run-fragment"):
        for accept in ("text/html", "application/json"):
            address = reverse(f"agents:{name}", args=[run.pk])
            assert client.get(address, headers={"Accept": accept}).status_code == 200


@pytest.mark.parametrize("payload", VALUES)
def test_event_with_any_payload_is_shown_in_the_admin(
    staff: Client, user: User, payload: Any
) -> None:
    run = make_run(user, metadata={"": STORED}, context={"": STORED})
    make_events(run, 1, event_type="own.type", payload=payload)
    for name, pk in (("agentrun", run.pk), ("agentevent", run.events.get().pk)):
        address = reverse(f"admin:agentic_django_{name}_change", args=[pk])
        assert staff.get(address, headers={"Accept": "text/html"}).status_code == 200


@pytest.mark.parametrize("value", VALUES)
def test_input_and_output_of_any_kind_are_shown(client: Client, user: User, value: Any) -> None:
    run = make_run(user, input_payload=value, final_output=value)
    for name in ("run-detail", "run-fragment"):
        for accept in ("text/html", "application/json"):
            address = reverse(f"agents:{name}", args=[run.pk])
            assert client.get(address, headers={"Accept": accept}).status_code == 200


def test_options_of_a_question_are_shown(staff: Client, user: User) -> None:
    session = AgentSession.objects.create(owner=user, session_key="talk")
    run = make_run(user, "waiting", session=session)
    approval = ToolApproval.objects.create(
        run=run, kind="question", call_id="c", question="Which?", options=[STORED, ""]
    )
    addresses = [
        reverse("admin:agentic_django_toolapproval_change", args=[approval.pk]),
        reverse("agents:run-detail", args=[run.pk]),
        reverse("agents:session-detail", args=["talk"]),
        reverse("agents:approval-list"),
    ]
    for address in addresses:
        assert staff.get(address, headers={"Accept": "text/html"}).status_code == 200
