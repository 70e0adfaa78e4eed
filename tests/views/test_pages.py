"""The pages of conversations: list, search, rename, archive, delete, a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from agentic_django import services
from agentic_django.models import AgentRun, AgentSession
from tests.support.rows import make_events, make_run, make_session
from tests.support.statements import at_most

BROWSER = {"Accept": "text/html"}
HTMX = {"HX-Request": "true"}
LIST = "/agents/sessions/"


@pytest.fixture
def talk(user: User) -> AgentSession:
    """A conversation of Ada's with one finished turn."""
    session = make_session(user, session_key="talk", agent_key="echo", title="Order 1042")
    make_run(user, "completed", session=session, input_payload="Where is my Überraschung?")
    return session


def ask(client: Client, path: str, **headers: str) -> Any:
    return client.get(path, headers=headers or BROWSER)


def say(client: Client, verb: str, **data: Any) -> Any:
    return client.post(reverse(f"agents:session-{verb}", args=["talk"]), data, headers=BROWSER)


# The list


def test_list_has_the_viewers_conversations_the_last_used_first(
    client: Client, user: User, other_user: User
) -> None:
    make_session(user, title="Old", days_ago=3)
    make_session(user, title="New")
    make_session(other_user, title="Not mine")
    html = ask(client, LIST).text
    assert html.index("New") < html.index("Last 7 days") < html.index("Old")
    assert "Not mine" not in html


@pytest.mark.parametrize("text", ["order", "1042", "where is", "Überraschung"])
def test_search_finds_titles_and_messages(
    client: Client, user: User, talk: AgentSession, text: str
) -> None:
    make_session(user, title="Something else")
    found = client.get(LIST, {"q": text}).json()["sessions"]
    assert [row["session_key"] for row in found] == ["talk"]


@pytest.mark.parametrize("text", ["%", "_", "\\", "'", '"', "100%"])
def test_search_has_no_wildcards(client: Client, user: User, text: str) -> None:
    make_session(user, session_key="a", title=f"About {text} here")
    make_session(user, session_key="b", title="About nothing")
    found = client.get(LIST, {"q": text}).json()["sessions"]
    assert [row["session_key"] for row in found] == ["a"]


@pytest.mark.parametrize("query", ["q=%00", "q=" + "x" * 201, "page=0", "page=x", "archived=maybe"])
def test_invalid_search_is_refused(client: Client, query: str) -> None:
    assert client.get(f"{LIST}?{query}").status_code == 400


def test_search_that_finds_nothing_says_so(client: Client, talk: AgentSession) -> None:
    assert "Nothing found for “zebra”." in ask(client, f"{LIST}?q=zebra").text


def test_empty_list_says_what_to_do_first(client: Client) -> None:
    assert "No conversations yet." in ask(client, LIST).text


def test_list_has_pages(client: Client, user: User) -> None:
    for number in range(51):
        make_session(user, session_key=f"s{number}", days_ago=number / 100)
    first = client.get(LIST).json()
    rest = client.get(first["next"]).json()
    assert (len(first["sessions"]), rest["next"]) == (50, None)
    assert [row["session_key"] for row in rest["sessions"]] == ["s50"]


def test_list_takes_one_statement_beside_the_login(client: Client, user: User) -> None:
    for number in range(5):
        session = make_session(user, session_key=f"s{number}")
        make_run(user, "failed", session=session)
    with at_most(3):
        html = ask(client, LIST).text
    assert html.count('data-state="failed"') == 5


def test_htmx_receives_only_the_list(client: Client, talk: AgentSession) -> None:
    html = ask(client, f"{LIST}?current=talk", **HTMX).text
    assert "<html" not in html
    assert 'aria-current="page"' in html
    assert 'hx-get="/agents/sessions/?current=talk"' in html


# Verbs


def test_conversation_is_renamed(client: Client, talk: AgentSession) -> None:
    response = say(client, "rename", title="  A better name ")
    assert (response.status_code, response.url) == (303, "/agents/sessions/talk/")
    talk.refresh_from_db()
    assert talk.title == "A better name"


@pytest.mark.parametrize("title", ["", "   ", "x" * 256, "a\0b"])
def test_bad_title_is_refused(client: Client, talk: AgentSession, title: str) -> None:
    assert say(client, "rename", title=title).status_code == 400
    talk.refresh_from_db()
    assert talk.title == "Order 1042"


def test_archived_conversation_leaves_the_list_and_comes_back(
    client: Client, talk: AgentSession
) -> None:
    say(client, "archive", archived="true")
    assert "Order 1042" not in ask(client, LIST).text
    assert "Order 1042" in ask(client, f"{LIST}?archived=1").text
    say(client, "archive", archived="false")
    assert "Order 1042" in ask(client, LIST).text


def test_archived_conversation_is_restored_by_a_new_run(
    client: Client, user: User, talk: AgentSession
) -> None:
    say(client, "archive")
    services.submit_agent_run(owner=user, input_payload="Hello?", session_key="talk")
    talk.refresh_from_db()
    assert talk.archived_at is None


def test_renaming_and_archiving_leave_the_order_of_the_list(
    client: Client, user: User, talk: AgentSession
) -> None:
    make_session(user, title="Newer")
    say(client, "rename", title="Renamed")
    html = ask(client, LIST).text
    assert html.index("Newer") < html.index("Renamed")


def test_deleting_needs_a_confirmation(client: Client, talk: AgentSession) -> None:
    html = ask(client, "/agents/sessions/talk/delete/").text
    assert "Delete this conversation?" in html
    assert "Order 1042" in html
    assert AgentSession.objects.filter(pk=talk.pk).exists()


def test_deleted_conversation_is_gone_with_its_runs(client: Client, talk: AgentSession) -> None:
    response = say(client, "delete")
    assert (response.status_code, response.url) == (303, LIST)
    assert not AgentSession.objects.exists()
    assert not AgentRun.objects.exists()


@pytest.mark.parametrize("status", ["pending", "running", "waiting"])
def test_unfinished_runs_are_cancelled_before_their_conversation_is_deleted(
    client: Client, user: User, talk: AgentSession, status: str
) -> None:
    make_run(user, status, session=talk)
    assert client.post("/agents/sessions/talk/delete/").status_code == 204
    assert not AgentRun.objects.exists()


@pytest.mark.parametrize("verb", ["rename", "archive", "delete"])
def test_conversation_of_another_user_cannot_be_changed(
    other_client: Client, talk: AgentSession, verb: str
) -> None:
    assert (
        say(other_client, verb, **({"title": "x"} if verb == "rename" else {})).status_code == 404
    )
    talk.refresh_from_db()
    assert (talk.title, talk.archived_at) == ("Order 1042", None)


@pytest.mark.parametrize("verb", ["rename", "archive", "delete"])
def test_posts_need_a_csrf_token(user: User, talk: AgentSession, verb: str) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    assert say(client, verb, title="x").status_code == 403


def test_htmx_is_redirected_to_the_page(client: Client, talk: AgentSession) -> None:
    response = client.post("/agents/sessions/talk/archive/", headers=HTMX)
    assert response.headers["HX-Redirect"] == "/agents/sessions/talk/"


def test_json_client_receives_the_conversation(client: Client, talk: AgentSession) -> None:
    path = "/agents/sessions/talk/rename/"
    document = client.post(path, {"title": "By JSON"}, content_type="application/json").json()
    assert (document["title"], document["archived_at"]) == ("By JSON", None)


# A new one


def test_new_conversation_offers_the_agents_that_the_user_may_use(
    client: Client, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_AGENT_ACCESS = lambda request, key: key in ("default", "echo")
    html = ask(client, "/agents/").text
    assert '<option value="echo">Echo</option>' in html
    assert html.count("<option") == 4  # And two for what to do while the agent works.


def test_agent_is_chosen_by_the_query_string(client: Client) -> None:
    assert '<option value="echo" selected>' in ask(client, "/agents/?agent=echo").text


def test_unknown_or_forbidden_agent_is_refused(client: Client, settings: Any) -> None:
    assert ask(client, "/agents/?agent=eco").status_code == 400
    settings.AGENTIC_DJANGO_AGENT_ACCESS = lambda request, key: key != "slow"
    assert ask(client, "/agents/?agent=slow").status_code == 403


@pytest.mark.django_db(transaction=True)
def test_first_message_creates_the_conversation_and_redirects_to_it(client: Client) -> None:
    data = {"input": "Hello", "session_key": "fresh", "agent_key": "echo", "show": "conversation"}
    response = client.post("/agents/runs/", data, headers=BROWSER)
    run = AgentRun.objects.get()
    expected = f"/agents/sessions/fresh/#run-container-{run.pk}"
    assert (response.status_code, response.url) == (303, expected)


def test_page_of_a_conversation_shows_its_usage(
    client: Client, user: User, talk: AgentSession
) -> None:
    AgentRun.objects.update(usage={"total_tokens": 2000})
    run = make_run(user, "failed", session=talk)
    AgentRun.objects.filter(pk=run.pk).update(usage={"total_tokens": 318})
    html = ask(client, "/agents/sessions/talk/").text
    assert "Echo · 2,318 tokens" in html


# A turn


@pytest.fixture
def turn(user: User, talk: AgentSession) -> Callable[..., str]:
    """Show a turn that had these events: ``turn(("message", {"text": "Hi"}), …)``."""

    def show(*told: tuple[str, dict[str, Any]], visibility: str = "user") -> str:
        run = make_run(user, "running", session=talk)
        for kind, payload in told:
            make_events(run, 1, event_type=kind, payload=payload, visibility=visibility)
        client = Client()
        client.force_login(user)
        return ask(client, reverse("agents:run-fragment", args=[run.pk])).text

    return show


def called(name: str, call_id: str) -> tuple[str, dict[str, Any]]:
    return "tool.called", {"call_id": call_id, "tool": name, "arguments": {}}


def test_turn_is_shown_in_its_order(turn: Callable[..., str]) -> None:
    html = turn(
        ("agent.updated", {"agent": "triage"}),
        ("message", {"text": "First this."}),
        called("look_up", "1"),
        ("reasoning", {"summary": "Hm, **well**."}),
        ("agent.updated", {"agent": "billing"}),
        called("refund", "2"),
        ("message", {"text": "Then that."}),
    )
    parts = ["First this.", "look_up", "<strong>well</strong>", "Billing took over", "refund"]
    places = [html.index(part) for part in [*parts, "Then that."]]
    assert places == sorted(places)
    assert "Triage took over" not in html


def test_thoughts_are_folded(turn: Callable[..., str]) -> None:
    html = turn(("reasoning", {"summary": "Hm."}), visibility="debug")
    assert '<details class="agentic-thoughts"' in html
    assert "<summary" in html


def test_thoughts_with_internal_visibility_are_not_shown(turn: Callable[..., str]) -> None:
    html = turn(("reasoning", {"summary": "Hm."}), visibility="internal")
    assert "Thoughts" not in html


def test_debug_events_of_other_kinds_are_not_shown(turn: Callable[..., str]) -> None:
    assert "Psst." not in turn(("message", {"text": "Psst."}), visibility="debug")


# Overriding


def test_host_overrides_a_card_the_bubble_and_the_colours_with_three_files(
    client: Client, settings: Any, user: User, talk: AgentSession
) -> None:
    directory = Path(__file__).parents[1] / "host_look"
    assert len([path for path in directory.rglob("*") if path.is_file()]) == 3
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(directory)]}]
    run = make_run(user, "running", session=talk, input_payload="Where is it?")
    given = {"call_id": "1", "tool": "find_order", "arguments": {"number": 1042}, "output": "Sent"}
    make_events(run, 1, event_type="tool.called", payload=given)
    make_events(
        run, 1, event_type="tool.called", payload={**given, "tool": "other", "call_id": "2"}
    )
    response = ask(client, "/agents/sessions/talk/")
    html = response.text
    assert '<p class="order-card">Order 1042: Sent</p>' in html
    assert '<code class="agentic-tool">other</code>' in html
    assert '<blockquote class="said">Where is it?</blockquote>' in html
    assert "--agentic-accent: rgb(1, 2, 3)" in html
    nonce = html.partition('<style nonce="')[2].partition('"')[0]
    assert nonce
    assert f"'nonce-{nonce}'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("name", ["../../base", "_default", "a/b", "", "..", "a.b"])
def test_name_of_a_tool_cannot_select_another_template(turn: Callable[..., str], name: str) -> None:
    assert "agentic-tool" in turn(called(name, "1"))
