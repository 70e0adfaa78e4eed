"""Runs over HTTP, for JSON callers, HTMX and browsers."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse

from agentic_django import services
from agentic_django.engine import events
from agentic_django.models import AgentEvent, AgentRun, AgentSession, RateWindow
from tests.support.rows import make_run, make_session
from tests.support.statements import at_most

pytestmark = pytest.mark.django_db(transaction=True)

Status = AgentRun.Status
HTMX = {"HX-Request": "true"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
CREATE = "/agents/runs/"
LIVE = "hx-trigger"


@pytest.fixture
def idle(settings: Any) -> None:
    """Nobody works: what is submitted stays pending."""
    settings.TASKS = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}


@pytest.fixture
def run(user: User) -> AgentRun:
    """A completed run of Ada's."""
    run = services.submit_agent_run(owner=user, input_payload="Hello", session_key="s")
    run.refresh_from_db()
    return run


@pytest.fixture
def pending(user: User, idle: None) -> AgentRun:
    """A run of Ada's that nobody has begun."""
    return services.submit_agent_run(owner=user, input_payload="Hello", session_key="s")


def post(client: Client, url: str = CREATE, **body: Any) -> Any:
    return client.post(url, json.dumps(body), content_type="application/json")


def address(name: str, run: AgentRun) -> str:
    return reverse(f"agents:run-{name}", args=[run.pk])


# Starting


def test_json_client_receives_the_new_run(client: Client) -> None:
    response = post(client, input="Hello")
    run = AgentRun.objects.get()
    assert response.status_code == 201
    document = response.json()
    assert response.headers["Location"] == document["urls"]["self"] == address("detail", run)
    assert document["run_id"] == str(run.pk)
    assert (document["status"], document["output"]) == ("completed", "You said: Hello")
    assert document["session_key"] == AgentSession.objects.get().session_key


def test_json_run_has_these_fields(client: Client, run: AgentRun) -> None:
    document = client.get(address("detail", run)).json()
    assert document.pop("usage")["total_tokens"] == 15
    for name in ("created_at", "started_at", "finished_at"):
        assert document.pop(name).startswith("2")
    base = f"/agents/runs/{run.pk}/"
    assert document == {
        "run_id": str(run.pk),
        "status": "completed",
        "session_key": "s",
        "agent_key": "default",
        "attempt": 1,
        "output": "You said: Hello",
        "final_output": "You said: Hello",
        "error": None,
        "urls": {
            "self": base,
            "fragment": f"{base}fragment/",
            "events": f"{base}events/",
            "stream": f"{base}stream/",
            "cancel": f"{base}cancel/",
            "retry": f"{base}retry/",
            "session": "/agents/sessions/s/",
            "items": "/agents/sessions/s/items/",
        },
    }


def test_failed_run_has_a_sentence_and_no_secret(client: Client, settings: Any) -> None:
    settings.DEBUG = True
    response = post(client, input="password", agent_key="broken")
    error = response.json()["error"]
    assert error["code"]
    assert error["detail"]
    assert b"secret" not in response.content


def test_htmx_receives_the_fragment(client: Client, idle: None) -> None:
    response = client.post(CREATE, {"input": "Hello"}, headers=HTMX)
    run = AgentRun.objects.get()
    assert response.status_code == 200
    assert f'id="run-container-{run.pk}"' in response.text
    assert 'data-status="pending"' in response.text
    assert LIVE in response.text
    assert "<html" not in response.text


def test_plain_form_is_redirected_to_the_page_of_the_run(client: Client) -> None:
    response = client.post(CREATE, {"input": "Hello"}, headers=BROWSER)
    assert response.status_code == 303
    assert response.headers["Location"] == address("detail", AgentRun.objects.get())


def test_boosted_form_is_redirected_to_the_page(client: Client) -> None:
    headers = {**HTMX, "HX-Boosted": "true"}
    assert client.post(CREATE, {"input": "Hello"}, headers=headers).status_code == 303


def test_form_without_a_preferred_type_receives_json(client: Client) -> None:
    assert client.post(CREATE, {"input": "Hello"}).status_code == 201


def test_json_body_from_htmx_receives_the_fragment(client: Client) -> None:
    body = json.dumps({"input": "Hello"})
    response = client.post(CREATE, body, content_type="application/json", headers=HTMX)
    assert "run-container-" in response.text


def test_list_of_items_is_accepted(client: Client) -> None:
    items = [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}]
    assert post(client, input=items).json()["output"] == "You said: Two"
    assert AgentRun.objects.get().input_payload == items


def test_all_fields_reach_the_run(client: Client, idle: None) -> None:
    fields: dict[str, Any] = {"session_key": "my-chat_1", "agent_key": "echo"}
    fields |= {"config": {"max_turns": 3}, "context": {"order": 7}}
    assert post(client, input="Hi", **fields).status_code == 201
    run = AgentRun.objects.select_related("session").get()
    assert run.session is not None
    assert (run.session.session_key, run.agent_key) == ("my-chat_1", "echo")
    assert (run.config, run.context) == ({"max_turns": 3}, {"order": 7})


def test_form_gives_objects_as_json_and_leaves_fields_empty(client: Client, idle: None) -> None:
    fields = {"session_key": "", "agent_key": "", "config": '{"max_turns": 3}', "context": ""}
    assert client.post(CREATE, {"input": "Hi", **fields}).status_code == 201
    run = AgentRun.objects.get()
    assert (run.config, run.context, run.agent_key) == ({"max_turns": 3}, {}, "default")


def test_conversation_continues_with_its_own_agent(client: Client, idle: None) -> None:
    post(client, input="Hi", session_key="s", agent_key="echo")
    assert post(client, input="Hi", session_key="s").json()["agent_key"] == "echo"


def test_busy_conversation_rejects_a_run_with_409_on_request(
    client: Client, pending: AgentRun
) -> None:
    response = post(client, input="Hi", session_key="s", on_busy="reject")
    assert response.status_code == 409
    assert response.json()["code"] == "session_busy"
    assert AgentRun.objects.count() == 1


def test_interrupting_run_cancels_the_previous_run(client: Client, pending: AgentRun) -> None:
    assert post(client, input="Hi", session_key="s", on_busy="interrupt").status_code == 201
    pending.refresh_from_db()
    assert pending.status == Status.CANCELLED


# Showing


def test_browser_receives_a_page(client: Client, run: AgentRun) -> None:
    response = client.get(address("detail", run), headers=BROWSER)
    assert response.status_code == 200
    assert "<html" in response.text
    assert "You said: Hello" in response.text


def test_page_extends_the_template_that_the_host_names(
    client: Client, run: AgentRun, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_BASE_TEMPLATE = "admin/base_site.html"
    response = client.get(address("detail", run), headers=BROWSER)
    assert "Django" in response.text


def test_htmx_receives_the_fragment_at_the_same_url(client: Client, run: AgentRun) -> None:
    response = client.get(address("detail", run), headers=HTMX)
    assert "run-container-" in response.text
    assert "<html" not in response.text


def test_history_of_htmx_receives_the_page(client: Client, run: AgentRun) -> None:
    headers = {**HTMX, "HX-History-Restore-Request": "true"}
    assert "<html" in client.get(address("detail", run), headers=headers).text


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "image/png", "", "text/html;q=0.1, */*"]
)
def test_json_is_the_default_format(client: Client, run: AgentRun, accept: str) -> None:
    response = client.get(address("detail", run), headers={"Accept": accept} if accept else {})
    assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("headers", [{}, HTMX, BROWSER])
@pytest.mark.parametrize("name", ["detail", "fragment"])
def test_responses_are_private(
    client: Client, run: AgentRun, name: str, headers: dict[str, str]
) -> None:
    response = client.get(address(name, run), headers=headers)
    assert {"Accept", "HX-Request", "Cookie"} <= set(response.headers["Vary"].split(", "))
    assert response.headers["Cache-Control"] == "private, no-store"


# Polling


def test_poll_of_an_unchanged_run_receives_204(client: Client, pending: AgentRun) -> None:
    shown = AgentRun.objects.with_queue_position().get()
    url = f"{address('fragment', pending)}?v={shown.version}"
    response = client.get(url, headers=HTMX)
    assert (response.status_code, response.content) == (204, b"")
    assert "HX-Trigger" not in response.headers


def test_poll_of_a_changed_run_receives_the_fragment(client: Client, pending: AgentRun) -> None:
    response = client.get(f"{address('fragment', pending)}?v=other", headers=HTMX)
    assert response.status_code == 200
    assert response.headers["HX-Trigger"] == "run-update"
    assert LIVE in response.text


def test_poll_of_a_finished_run_stops_the_polling(client: Client, run: AgentRun) -> None:
    response = client.get(address("fragment", run), headers=HTMX)
    assert response.status_code == 286
    assert response.headers["HX-Trigger"] == "run-update"
    assert "You said: Hello" in response.text
    assert LIVE not in response.text


def test_fragment_of_a_finished_run_is_200_without_htmx(client: Client, run: AgentRun) -> None:
    response = client.get(address("fragment", run), headers=BROWSER)
    assert response.status_code == 200
    assert "You said: Hello" in response.text


def test_fragment_polls_with_its_version(client: Client, pending: AgentRun) -> None:
    shown = client.get(address("fragment", pending), headers=HTMX).text
    url = shown.split('hx-get="')[1].split('"')[0]
    assert client.get(url, headers=HTMX).status_code == 204


@pytest.mark.parametrize("query", ["", "?v=old"])
def test_poll_takes_three_statements(client: Client, pending: AgentRun, query: str) -> None:
    with at_most(3):
        client.get(address("fragment", pending) + query, headers=HTMX)


def test_last_poll_takes_three_statements(client: Client, scripted: Any, user: User) -> None:
    run = services.submit_agent_run(owner=user, input_payload="g", agent_key="sync_tool")
    with at_most(3):
        response = client.get(address("fragment", run), headers=HTMX)
    assert "1 groups" in response.text


# Events


def test_events_are_paged_by_their_numbers(client: Client, run: AgentRun) -> None:
    first = client.get(f"{address('events', run)}?limit=1").json()
    assert (first["run_id"], first["status"]) == (str(run.pk), "completed")
    assert first["next_after"] == first["events"][0]["sequence"] == 1
    assert set(first["events"][0]) == {
        "sequence",
        "event_type",
        "visibility",
        "payload",
        "created_at",
    }
    rest = client.get(f"{address('events', run)}?after=1").json()
    assert rest["events"][-1]["event_type"] == "run.completed"
    end = client.get(f"{address('events', run)}?after={rest['next_after']}").json()
    assert (end["events"], end["next_after"]) == ([], rest["next_after"])


def test_owner_does_not_see_internal_or_debug_events(client: Client, run: AgentRun) -> None:
    add_events(run, ["debug", "internal", "user"])
    shown = client.get(address("events", run)).json()["events"]
    assert {event["visibility"] for event in shown} == {"user"}


def test_staff_may_request_debug_events(client: Client, user: User, run: AgentRun) -> None:
    add_events(run, ["debug", "internal"])
    url = f"{address('events', run)}?visibility=debug"
    response = client.get(url)
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    User.objects.update(is_staff=True)
    shown = client.get(url).json()["events"]
    assert {event["visibility"] for event in shown} == {"user", "debug"}


def add_events(run: AgentRun, levels: list[str]) -> None:
    for sequence, level in enumerate(levels, run.event_count + 1):
        event = events.new_event("log", level, message="x")
        AgentEvent.objects.create(
            run=run,
            sequence=sequence,
            event_type=event.event_type,
            visibility=level,
            payload=event.payload,
        )


def test_response_has_at_most_a_thousand_events(client: Client, run: AgentRun) -> None:
    rows = [
        AgentEvent(run=run, sequence=n, event_type="log", visibility="user", payload={})
        for n in range(1000, 2100)
    ]
    AgentEvent.objects.bulk_create(rows)
    assert len(client.get(f"{address('events', run)}?limit=5000").json()["events"]) == 1000
    assert len(client.get(address("events", run)).json()["events"]) == 100


def test_events_take_four_statements(client: Client, run: AgentRun) -> None:
    with at_most(4):
        client.get(address("events", run))


# Cancelling and retrying


def test_cancelling_returns_the_run_as_json(client: Client, pending: AgentRun) -> None:
    response = post(client, address("cancel", pending))
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    event = AgentEvent.objects.get(event_type="run.cancelled")
    assert event.payload == {"by": "ada", "by_owner": True}


def test_cancelling_returns_the_fragment_to_htmx(client: Client, pending: AgentRun) -> None:
    response = client.post(address("cancel", pending), headers=HTMX)
    assert response.status_code == 200
    assert 'data-status="cancelled"' in response.text
    assert LIVE not in response.text


def test_cancelling_by_a_plain_form_redirects_to_the_page(
    client: Client, pending: AgentRun
) -> None:
    response = client.post(address("cancel", pending), headers=BROWSER)
    assert response.status_code == 303
    assert response.headers["Location"] == address("detail", pending)


def test_body_without_a_type_may_be_empty(client: Client, pending: AgentRun) -> None:
    response = client.generic("POST", address("cancel", pending), content_type="")
    assert response.status_code == 200


@pytest.mark.parametrize(("headers", "text"), [({}, '"conflict"'), (HTMX, "Completed")])
def test_cancelling_a_finished_run_is_a_conflict(
    client: Client, run: AgentRun, headers: dict[str, str], text: str
) -> None:
    response = client.post(address("cancel", run), headers=headers)
    assert response.status_code == 409
    assert text in response.text


def test_retrying_executes_the_run_again(client: Client, pending: AgentRun, use_tasks: Any) -> None:
    services.cancel_agent_run(pending)
    use_tasks("immediate")
    response = client.post(address("retry", pending))
    assert (response.status_code, response.json()["status"]) == (200, "completed")
    assert AgentRun.objects.get().generation == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_starting_again_begins_a_new_generation(
    client: Client, pending: AgentRun, as_json: bool
) -> None:
    services.cancel_agent_run(pending)
    url = address("retry", pending)
    if as_json:
        response = post(client, url, start_again=True)
    else:
        response = client.post(url, {"start_again": "1"})
    assert response.status_code == 200
    assert AgentRun.objects.get().generation == 2


def test_completed_run_is_not_retried(client: Client, run: AgentRun) -> None:
    response = client.post(address("retry", run))
    assert (response.status_code, response.json()["code"]) == (409, "conflict")


# Who may


@pytest.mark.parametrize("name", ["detail", "fragment", "events"])
@pytest.mark.parametrize("headers", [{}, HTMX, BROWSER])
def test_run_of_another_user_is_not_found(
    other_client: Client, run: AgentRun, name: str, headers: dict[str, str]
) -> None:
    theirs = other_client.get(address(name, run), headers=headers)
    none = other_client.get(f"/agents/runs/{uuid4()}/", headers=headers)
    assert theirs.status_code == none.status_code == 404
    assert "This does not exist" in theirs.text
    assert ("<html" in theirs.text) is (headers is BROWSER)


@pytest.mark.parametrize("name", ["cancel", "retry"])
def test_run_of_another_user_is_not_changed(
    other_client: Client, pending: AgentRun, name: str
) -> None:
    assert other_client.post(address(name, pending)).status_code == 404
    pending.refresh_from_db()
    assert pending.status == Status.PENDING


def test_staff_see_only_their_own_runs(
    other_client: Client, other_user: User, run: AgentRun
) -> None:
    User.objects.filter(pk=other_user.pk).update(is_staff=True)
    assert other_client.get(address("detail", run)).status_code == 404


def access_only_echo(request: Any, agent_key: str) -> bool:
    return agent_key == "echo" and request.user.is_authenticated


def test_host_decides_who_may_use_an_agent(client: Client, settings: Any) -> None:
    settings.AGENTIC_DJANGO_AGENT_ACCESS = "tests.views.test_runs.access_only_echo"
    assert post(client, input="Hi", agent_key="echo").status_code == 201
    response = post(client, input="Hi", agent_key="slow", session_key="s")
    assert (response.status_code, response.json()["code"]) == (403, "not_allowed")
    assert not AgentSession.objects.filter(session_key="s").exists()


def test_agent_that_is_no_longer_allowed_is_not_retried(
    client: Client, pending: AgentRun, settings: Any
) -> None:
    services.cancel_agent_run(pending)
    settings.AGENTIC_DJANGO_AGENT_ACCESS = access_only_echo
    assert client.post(address("retry", pending)).status_code == 403


# The rate


def test_too_many_runs_are_refused_with_a_retry_after_header(
    client: Client, idle: None, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = "2/d"
    assert [post(client, input="Hi").status_code for _ in range(2)] == [201, 201]
    response = post(client, input="Hi", session_key="late")
    assert response.status_code == 429
    assert response.headers["Content-Type"] == "application/problem+json"
    assert 0 < int(response.headers["Retry-After"]) <= 86400
    assert response.json()["code"] == "rate_limited"
    assert AgentRun.objects.count() == 2
    assert not AgentSession.objects.filter(session_key="late").exists()


@pytest.mark.parametrize(
    "body",
    [
        {"input": ""},
        {"input": "Hi", "agent_key": "ecko"},
        {"input": "Hi", "config": {"model": "x"}},
    ],
)
def test_refused_run_does_not_count(client: Client, settings: Any, body: Any) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = "1/d"
    assert post(client, **body).status_code == 400
    assert not RateWindow.objects.exists()


def test_run_refused_by_a_busy_conversation_does_not_count(
    client: Client, pending: AgentRun, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = "1/d"
    assert post(client, input="Hi", session_key="s", on_busy="reject").status_code == 409
    assert not RateWindow.objects.exists()


# Hosts whose requests are transactions


@pytest.fixture
def atomic_requests() -> Any:
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
    yield
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = False


def test_run_starts_after_the_request_where_requests_are_atomic(
    client: Client, atomic_requests: None
) -> None:
    assert post(client, input="Hi").json()["status"] == "pending"
    assert AgentRun.objects.get().status == Status.COMPLETED


def test_rate_is_right_where_requests_are_atomic(
    client: Client, atomic_requests: None, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = "1/d"
    assert post(client, input="Hi", agent_key="ecko").status_code == 400
    assert post(client, input="Hi").status_code == 201
    assert post(client, input="Hi").status_code == 429
    assert RateWindow.objects.get().count == 1
    assert AgentRun.objects.count() == 1


# Bodies that are empty


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "application/json", ""])
def test_a_post_without_a_body_needs_no_content_type(
    client: Client, pending: AgentRun, kind: str
) -> None:
    for verb, status in (("cancel", "cancelled"), ("retry", "pending")):
        response = client.generic("POST", address(verb, pending), b"", CONTENT_TYPE=kind)
        assert response.status_code == 200, response.text
        assert response.json()["status"] == status
    response = client.generic("POST", "/agents/sessions/s/archive/", b"", CONTENT_TYPE=kind)
    assert response.status_code == 200
    response = client.generic("POST", "/agents/sessions/s/delete/", b"", CONTENT_TYPE=kind)
    assert response.status_code == 204


# The list of runs


def test_runs_are_listed_newest_first_and_by_pages(client: Client, user: User) -> None:
    made = [str(make_run(user).pk) for _ in range(3)]
    for minutes, pk in enumerate(reversed(made)):
        moment = Now() - timedelta(minutes=minutes)
        AgentRun.objects.filter(pk=pk).update(created_at=moment)
    first = client.get(f"{CREATE}?limit=2").json()
    assert [run["run_id"] for run in first["runs"]] == [made[2], made[1]]
    assert first["runs"][0]["urls"]["self"] == f"/agents/runs/{made[2]}/"
    rest = client.get(f"{CREATE}?before={first['next_before']}").json()
    assert [run["run_id"] for run in rest["runs"]] == [made[0]]
    assert rest["next_before"] is None


def test_runs_of_one_moment_are_listed_once_each(client: Client, user: User) -> None:
    made = {str(make_run(user).pk) for _ in range(3)}
    run = AgentRun.objects.filter(pk__in=made)
    run.update(created_at=run.latest("created_at").created_at)
    found, before = [], ""
    while before is not None:
        page = client.get(f"{CREATE}?limit=1&before={before}" if before else f"{CREATE}?limit=1")
        found += [entry["run_id"] for entry in page.json()["runs"]]
        before = page.json()["next_before"]
    assert sorted(found) == sorted(made)


def test_each_status_can_be_listed(client: Client) -> None:
    for status in Status:
        assert client.get(f"{CREATE}?status={status}").status_code == 200


def test_the_list_of_runs_is_filtered_by_status_and_conversation(
    client: Client, user: User, run: AgentRun
) -> None:
    failed = make_run(user, "failed")
    found = client.get(f"{CREATE}?status=failed").json()["runs"]
    assert [entry["run_id"] for entry in found] == [str(failed.pk)]
    found = client.get(f"{CREATE}?session_key=s").json()["runs"]
    assert [entry["run_id"] for entry in found] == [str(run.pk)]
    for wrong in ("status=done", "before=x", "limit=0", "status=failed&status=pending"):
        assert client.get(f"{CREATE}?{wrong}").status_code == 400
    assert client.get(f"{CREATE}?session_key=a%00b").status_code == 404


def test_the_runs_of_others_are_not_listed(
    other_client: Client, anonymous_client: Client, run: AgentRun
) -> None:
    assert other_client.get(CREATE).json() == {"runs": [], "next_before": None}
    assert anonymous_client.get(CREATE).status_code == 401


def test_a_browser_is_redirected_from_the_list_of_runs_to_the_conversations(
    client: Client,
) -> None:
    response = client.get(CREATE, headers=BROWSER)
    assert (response.status_code, response.headers["Location"]) == (302, "/agents/sessions/")


def test_the_list_of_runs_takes_three_statements(client: Client, user: User) -> None:
    for _ in range(3):
        make_run(user, session=make_session(user))
    with at_most(3):
        assert len(client.get(CREATE).json()["runs"]) == 3
