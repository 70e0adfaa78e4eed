"""Conversations over HTTP."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from agentic_django import services
from agentic_django.engine import session_items
from agentic_django.models import AgentSession
from tests.support.rows import make_run
from tests.support.statements import at_most

pytestmark = pytest.mark.django_db(transaction=True)

HTMX = {"HX-Request": "true"}
BROWSER = {"Accept": "text/html"}
ITEMS = "/agents/sessions/s/items/"


@pytest.fixture
def session(user: User) -> AgentSession:
    """A conversation of Ada's with one turn."""
    services.submit_agent_run(owner=user, input_payload="Hello", session_key="s")
    return AgentSession.objects.get()


def test_items_are_listed_oldest_first(client: Client, session: AgentSession) -> None:
    document = client.get(ITEMS).json()
    assert document["session_key"] == "s"
    assert [item["role"] for item in document["items"]] == ["user", "assistant"]


def test_limit_returns_the_last_items(client: Client, session: AgentSession) -> None:
    session_items.append_items(session, [{"role": "user", "content": str(n)} for n in range(600)])
    shown = {limit: items(client, f"?limit={limit}") for limit in (2, 500, 9000)}
    assert shown[2] == ["598", "599"]
    assert len(items(client, "")) == 50
    assert len(shown[500]) == len(shown[9000]) == 500


def items(client: Client, query: str) -> list[Any]:
    return [item["content"] for item in client.get(ITEMS + query).json()["items"]]


def test_htmx_receives_messages(client: Client, session: AgentSession) -> None:
    response = client.get(ITEMS, headers=HTMX)
    assert response.status_code == 200
    assert "You said: Hello" in response.text
    assert "<html" not in response.text


def test_browser_receives_the_page_of_the_conversation(
    client: Client, session: AgentSession
) -> None:
    response = client.get("/agents/sessions/s/", headers=BROWSER)
    assert response.status_code == 200
    assert "You said: Hello" in response.text
    assert reverse("agents:run-create") in response.text


def test_json_of_a_conversation_has_the_url_of_its_items(
    client: Client, session: AgentSession
) -> None:
    document = client.get("/agents/sessions/s/").json()
    assert (document["session_key"], document["title"]) == ("s", "Hello")
    assert document["urls"] == {"self": "/agents/sessions/s/", "items": ITEMS}


def test_items_take_four_statements(client: Client, session: AgentSession) -> None:
    with at_most(4):
        client.get(ITEMS)


@pytest.mark.parametrize("name", ["detail", "items"])
@pytest.mark.parametrize("headers", [{}, HTMX, BROWSER])
def test_conversation_of_another_user_is_not_found(
    other_client: Client, session: AgentSession, name: str, headers: dict[str, str]
) -> None:
    url = reverse(f"agents:session-{name}", args=["s"])
    assert other_client.get(url, headers=headers).status_code == 404


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1.5", "9" * 5000, "1&limit=2"])
def test_bad_limit_is_refused(client: Client, session: AgentSession, limit: str) -> None:
    response = client.get(f"{ITEMS}?limit={limit}")
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == ["limit"]


@pytest.mark.parametrize("key", ["a b", "a.b", "ä", "x" * 256, "a%00b"])
def test_invalid_session_key_in_a_url_is_not_found(client: Client, key: str) -> None:
    response = client.get(f"/agents/sessions/{key}/items/")
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"


TURNS = "/agents/sessions/s/turns/"


def test_turns_after_a_position_are_returned_as_fragments(
    client: Client, session: AgentSession, user: User
) -> None:
    assert client.get(f"{TURNS}?after=1").status_code == 204
    later = [make_run(user, session=session, input_payload=f"Later {n}") for n in (1, 2)]
    html = client.get(f"{TURNS}?after=1").content.decode()
    found = re.findall(r'id="run-container-([^"]+)".*?data-agentic-position="(\d+)"', html)
    assert found == [(str(run.pk), str(run.position)) for run in later]
    assert client.get(f"{TURNS}?after=3").status_code == 204


def test_request_for_turns_takes_three_statements_and_no_rendering(
    client: Client, session: AgentSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentic_django.views.fragments.render", None)
    with at_most(3):
        assert client.get(f"{TURNS}?after=1").content == b""


def test_turns_of_another_user_are_not_returned(
    other_client: Client, session: AgentSession
) -> None:
    assert other_client.get(TURNS).status_code == 404
    assert other_client.get(f"{TURNS}?after=9").status_code == 404
    assert other_client.get("/agents/sessions/none/turns/").status_code == 404
    assert other_client.get("/agents/sessions/no%20key/turns/").status_code == 404


@pytest.mark.parametrize("after", ["-1", "x", "9" * 30])
def test_invalid_position_of_a_turn_is_refused(
    client: Client, session: AgentSession, after: str
) -> None:
    assert client.get(f"{TURNS}?after={after}").status_code == 400
