"""The streams over HTTP, under WSGI and under a real ASGI server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.http import StreamingHttpResponse
from django.test import Client
from django.utils import timezone

from agentic_django import services
from agentic_django.engine import events, fenced_writes, lifecycle
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import EventType
from agentic_django.models import AgentDraft, AgentRun, AgentSession, ToolApproval
from agentic_django.streaming import sse_messages
from agentic_django.views import stream
from tests.support.processes import Process, Project, wait_until
from tests.support.rows import make_events, make_run, make_session
from tests.support.servers import Valkey
from tests.support.streams import Message, Stream, messages

JSON = {"format": "json"}


@pytest.fixture
def run(user: User) -> AgentRun:
    run = make_run(user, "running")
    make_events(run, 2, payload={"text": "Hello"})
    return run


def body(response: Any) -> str:
    assert isinstance(response, StreamingHttpResponse)
    return response.getvalue().decode()


# Under WSGI, and what is refused


@pytest.mark.django_db
def test_wsgi_sends_the_current_state_and_closes(client: Client, run: AgentRun) -> None:
    AgentDraft.objects.create(run=run, key="main:model:1", attempt=1, text="So far")
    text = body(client.get(f"/agents/runs/{run.pk}/stream/", JSON))
    assert "retry: 1000\n" in text
    assert [each.name for each in messages(text)] == ["message", "message", "message.delta"]
    last = messages(text)[-1].id
    again = body(
        client.get(f"/agents/runs/{run.pk}/stream/", JSON, headers={"Last-Event-ID": last})
    )
    assert messages(again) == []


@pytest.mark.django_db
def test_wsgi_tells_a_page_to_poll(client: Client, run: AgentRun) -> None:
    found = messages(body(client.get("/agents/stream/", {"run": str(run.pk)})))
    assert [each.name for each in found] == ["run", "poll"]


@pytest.mark.django_db
def test_page_of_a_conversation_receives_only_its_runs(
    client: Client, run: AgentRun, user: User, other_user: User
) -> None:
    session = make_session(user, session_key="talk")
    joined = make_run(user, "running", session=session)
    make_session(other_user, session_key="theirs")
    found = messages(body(client.get("/agents/stream/", {"session": "talk"})))
    assert [each.data.get("run") for each in found] == [str(joined.pk), None]
    found = messages(body(client.get("/agents/stream/", {"session": "talk", "run": str(run.pk)})))
    assert {each.data.get("run") for each in found} == {str(run.pk), str(joined.pk), None}
    assert client.get("/agents/stream/", {"session": "theirs"}).status_code == 404


@pytest.mark.django_db
def test_stream_has_the_headers_that_proxies_need(client: Client, run: AgentRun) -> None:
    response = client.get(f"/agents/runs/{run.pk}/stream/")
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Cache-Control"] == "private, no-store, no-transform"
    assert body(client.head(f"/agents/runs/{run.pk}/stream/")) == ""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("follower", "words"),
    [
        (sse_messages.EventFeed, b": keep-alive\n\n"),
        (sse_messages.PageFeed, b"event: alive\ndata: {}\n\n"),
    ],
)
def test_quiet_stream_sends_signs_of_life(
    run: AgentRun, monkeypatch: pytest.MonkeyPatch, follower: Any, words: bytes
) -> None:
    monkeypatch.setattr(stream, "ALIVE_SECONDS", 0.02)
    monkeypatch.setattr(stream, "KEEP_ALIVE_SECONDS", 0.02)

    async def heard() -> bool:
        parts = stream._open_stream(follower([run.pk]))
        begin = await anext(parts)
        assert begin.startswith(b"retry: ")
        found = [await anext(parts) for _ in range(5)]
        await parts.aclose()  # type: ignore[attr-defined]
        return words in found

    assert asyncio.run(heard())


@pytest.mark.django_db
def test_watching_is_noted_so_that_text_is_written_often(client: Client, run: AgentRun) -> None:
    client.get(f"/agents/runs/{run.pk}/stream/")
    run.refresh_from_db()
    assert run.watched_until is not None
    assert run.watched_until > timezone.now()


@pytest.mark.django_db
def test_other_users_receive_nothing(
    other_client: Client, anonymous_client: Client, run: AgentRun
) -> None:
    session = make_session(run.owner)
    for path in (f"runs/{run.pk}", f"sessions/{session.session_key}"):
        assert other_client.get(f"/agents/{path}/stream/").status_code == 404
        assert anonymous_client.get(f"/agents/{path}/stream/").status_code == 401
    assert other_client.get("/agents/stream/", {"run": str(run.pk)}).status_code == 404
    assert messages(body(other_client.get("/agents/stream/", JSON))) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "query",
    [
        {"format": "xml"},
        {"format": "json", "after": "x"},
        {"format": "json", "after": "t999999999999999"},
        {"format": "json", "visibility": "internal"},
    ],
)
def test_invalid_parameters_are_refused(client: Client, run: AgentRun, query: Any) -> None:
    response = client.get(f"/agents/runs/{run.pk}/stream/", query)
    assert response.status_code == 400
    assert response.json()["errors"]


@pytest.mark.django_db
def test_debug_events_are_for_staff(client: Client, run: AgentRun) -> None:
    query = {**JSON, "visibility": "debug"}
    assert client.get(f"/agents/runs/{run.pk}/stream/", query).status_code == 403
    User.objects.update(is_staff=True)
    assert client.get(f"/agents/runs/{run.pk}/stream/", query).status_code == 200


@pytest.mark.django_db
def test_too_many_or_malformed_runs_are_refused(client: Client, run: AgentRun) -> None:
    many = [str(run.pk)] * 101
    assert client.get("/agents/stream/", {"run": many}).status_code == 400
    assert client.get("/agents/stream/", {"run": "x"}).status_code == 404
    assert client.get("/agents/stream/", {"run": str(run.pk), **JSON}).status_code == 400
    assert client.get("/agents/stream/", {**JSON, "after": "7"}).status_code == 400
    assert client.get("/agents/stream/", {"session": "none"}).status_code == 404
    assert client.post("/agents/stream/").status_code == 405


@pytest.mark.django_db
def test_stream_of_a_finished_run_stops_reconnecting(client: Client, run: AgentRun) -> None:
    AgentRun.objects.update(status="completed")
    path = f"/agents/runs/{run.pk}/stream/"
    text = body(client.get(path, JSON))
    last = messages(text)[-1].id
    assert client.get(path, JSON, headers={"Last-Event-ID": last}).status_code == 204
    page = messages(body(client.get(path)))
    assert [each.name for each in page] == ["run", "end", "poll"]
    assert client.get(path, headers={"Last-Event-ID": page[1].id}).status_code == 204


@pytest.mark.django_db(transaction=True)
def test_stream_opts_out_of_a_transaction_per_request(
    client: Client, run: AgentRun, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import connections

    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    seen: list[bool] = []
    real = fenced_writes.mark_watched

    def watch(ids: Any) -> None:
        seen.append(transaction.get_connection().in_atomic_block)
        real(ids)

    monkeypatch.setattr(fenced_writes, "mark_watched", watch)
    for path in (f"runs/{run.pk}/stream/", "stream/"):
        body(client.get(f"/agents/{path}"))
    assert seen == [False, False]


# Under ASGI


@pytest.fixture
def served(
    request: pytest.FixtureRequest, django_db_blocker: Any
) -> Iterator[tuple[Project, Process]]:
    """A project whose web server this process writes beside; by default it polls SQLite."""
    way = getattr(request, "param", "sqlite")
    name = "sqlite_project" if way == "sqlite" else "project"
    project: Project = request.getfixturevalue(name)
    project.settings = "tests.settings_live"
    is_short = "set_duration" in request.node.name
    project.extra["AGENTIC_TEST_STREAM_SECONDS"] = "3" if is_short else "60"
    if way == "redis":
        valkey: Valkey = request.getfixturevalue("valkey")
        project.extra["AGENTIC_TEST_WAKEUP_URL"] = f"redis://127.0.0.1:{valkey.port}/1"
        request.getfixturevalue("settings").AGENTIC_DJANGO_REDIS_URL = project.extra[
            "AGENTIC_TEST_WAKEUP_URL"
        ]
    with django_db_blocker.unblock(), project.in_process(), project.web_server() as server:
        yield project, server


each_way = pytest.mark.parametrize("served", ["sqlite", "postgres", "redis"], indirect=True)


@pytest.fixture
def ada(served: Any) -> User:
    return User.objects.create_user("ada", "ada@example.com", "ada-password")


def tell(run: AgentRun, kind: str = EventType.MESSAGE, **payload: Any) -> None:
    """Write an event as an attempt does."""
    with transaction.atomic():
        fenced_writes.update_run(Attempt(run), [events.new_event(kind, **payload)])


def join(owner: User, stream: Stream, **columns: Any) -> None:
    """Wait until a stream of many runs has begun."""
    run = make_run(owner, "running", **columns)
    wait_until(lambda: tell(run, text="Ready?", agent="echo") or stream.arrived)
    fenced_writes.end_attempt(Attempt(run), "complete")


def is_named(name: str) -> Callable[[Message], bool]:
    return lambda message: message.name == name


@each_way
def test_stream_sends_events_as_they_happen(served: Any, ada: User) -> None:
    _project, server = served
    run = make_run(ada, "running")
    with Stream(f"{server.url}/agents/runs/{run.pk}/stream/?format=json", ada) as stream:
        assert stream.status == 200
        tell(run, text="One", agent="echo")
        assert stream.until(is_named("message")).data["payload"]["text"] == "One"
        draft = runs_draft(run)
        draft.add("Two, and")
        assert stream.until(is_named("message.delta")).data["text"] == "Two, and"
        draft.add(" three")
        assert stream.until(is_named("message.delta")).data["offset"] == 8
        draft.close()
        fenced_writes.end_attempt(
            Attempt(run), "complete", [events.new_event(EventType.RUN_COMPLETED, output="Two")]
        )
        assert stream.until(is_named("run.completed")).data["payload"] == {"output": "Two"}
        wait_until(lambda: stream.is_closed)
    assert [each.id for each in stream.arrived if "." not in each.id] == ["1", "2"]


def runs_draft(run: AgentRun) -> Any:
    from agentic_django.engine.drafts import PartialMessage

    return PartialMessage(Attempt(run), "main:model:1")


@each_way
def test_stream_of_all_runs_includes_new_runs(served: Any, ada: User) -> None:
    _project, server = served
    other = User.objects.create_user("bob")
    session = make_session(ada, session_key="talk")
    with (
        Stream(f"{server.url}/agents/stream/?format=json", ada) as everything,
        Stream(f"{server.url}/agents/sessions/talk/stream/?format=json", ada) as talk,
    ):
        join(ada, everything, session=None)
        join(ada, talk, session=session)
        for owner, columns in ((other, {}), (ada, {}), (ada, {"session": session})):
            run = make_run(owner, "running", **columns)
            tell(run, text=f"of {owner.username}", agent="echo")
        found = everything.until(lambda message: message.data["run_id"] == str(run.pk))
        talk.until(lambda message: message.data["run_id"] == str(run.pk))
    texts = [each.data["payload"].get("text", "Ready?") for each in everything.arrived]
    assert [text for text in texts if text != "Ready?"] == ["of ada", "of ada"]
    assert "of bob" not in everything.raw
    assert talk.raw.count("of ada") == 1
    assert found.id.startswith("t")


@each_way
def test_page_receives_its_runs_and_new_runs_of_its_conversation(served: Any, ada: User) -> None:
    _project, server = served
    session = make_session(ada, session_key="talk")
    alone = make_run(ada, "running")
    with Stream(f"{server.url}/agents/stream/?session=talk&run={alone.pk}", ada) as stream:
        assert stream.until(is_named("run")).data["run"] == str(alone.pk)
        make_run(ada, "running")
        joined = make_run(ada, "running", session=session)
        assert stream.until(is_named("run")).data["run"] == str(joined.pk)
        fenced_writes.end_attempt(Attempt(joined), "complete")
        stamps = [stream.until(is_named("run")).data["stamp"]]
        assert stamps[0].startswith("completed")
        again = make_run(ada, "running", session=session)
        assert stream.until(is_named("run")).data["run"] == str(again.pk)


@pytest.mark.parametrize("served", ["postgres"], indirect=True)
def test_stream_ends_with_its_reader_and_holds_no_connection(served: Any, ada: User) -> None:
    from django.db import connection

    _project, server = served
    run = make_run(ada, "running")

    def connected() -> int:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
            return int(cursor.fetchone()[0])

    url = f"{server.url}/agents/runs/{run.pk}/stream/"
    with Stream(url, ada), Stream(url, ada), Stream(url, ada), Stream(url, ada) as last:
        last.until(is_named("run"))
        # The reader of all, who listens, and this process's own that tells.
        wait_until(lambda: connected() <= 3)
    wait_until(lambda: connected() <= 1, timeout=30)


def test_stream_ends_after_the_set_duration_and_can_be_continued(served: Any, ada: User) -> None:
    _project, server = served
    run = make_run(ada, "running")
    tell(run, text="One", agent="echo")
    url = f"{server.url}/agents/runs/{run.pk}/stream/?format=json"
    with Stream(url, ada) as stream:
        last = stream.until(is_named("message")).id
        stop = time.monotonic() + 30
        while not stream.is_closed and time.monotonic() < stop:
            tell(run, text="More", agent="echo")
            time.sleep(0.2)
        assert stream.is_closed
        assert stream.raw.endswith("retry: 100\n\n")
    with Stream(url, ada, last=last) as again:
        assert again.until(is_named("message")).id == "2"


def test_late_worker_is_shown_without_an_event(served: Any, ada: User) -> None:
    _project, server = served
    run = make_run(ada, "running")
    with Stream(f"{server.url}/agents/stream/?run={run.pk}", ada) as stream:
        stream.until(is_named("run"))
        AgentRun.objects.filter(pk=run.pk).update(lease_ends_at=timezone.now())
        stream.until(lambda message: message.data.get("stamp", "").endswith("-late"))
        stream.until(is_named("alive"))


def test_enqueued_run_is_shown_before_it_is_claimed(served: Any, ada: User) -> None:
    _project, server = served
    session: AgentSession = make_session(ada, session_key="talk")
    with Stream(f"{server.url}/agents/sessions/talk/stream/", ada) as stream:
        run = AgentRun.objects.create(session=session, agent_key="slow", input_payload="0")
        told = stream.until(is_named("run"))
        assert told.data["run"] == str(run.pk)
        services.cancel_agent_run(run, by=ada)
        stream.until(lambda message: "cancelled" in message.data.get("stamp", ""))


def test_worker_of_a_new_run_soon_learns_that_it_is_watched(served: Any, ada: User) -> None:
    _project, server = served
    session: AgentSession = make_session(ada, session_key="talk")
    with Stream(f"{server.url}/agents/sessions/talk/stream/", ada) as stream:
        for _ in range(2):  # The second is new to a stream that has noted another just now.
            run = make_run(ada, "running", session=session)
            stream.until(lambda message, pk=str(run.pk): message.data.get("run") == pk)
            is_watched = AgentRun.objects.filter(pk=run.pk, watched_until__isnull=False)
            wait_until(is_watched.exists, timeout=5)
            AgentRun.objects.filter(pk=run.pk).update(status="completed")


def test_retried_run_is_streamed_again(served: Any, ada: User) -> None:
    _project, server = served
    run = make_run(ada, "running")
    with Stream(f"{server.url}/agents/stream/?format=json", ada) as stream:
        wait_until(lambda: tell(run, text="One", agent="echo") or stream.arrived)
        fenced_writes.end_attempt(
            Attempt(run), "fail", [events.new_event(EventType.RUN_FAILED, error="", code="x")]
        )
        stream.until(is_named("run.failed"))
        lifecycle.retry(run)
        stream.until(is_named("run.retrying"))
    numbers = [each.data["sequence"] for each in stream.arrived]
    assert numbers == list(dict.fromkeys(numbers))


@each_way
def test_question_and_decision_are_streamed(served: Any, ada: User) -> None:
    _project, server = served
    run = make_run(ada, "running", session=make_session(ada, session_key="talk"))
    url = f"{server.url}/agents/runs/{run.pk}/stream/?format=json"
    page = f"{server.url}/agents/sessions/talk/stream/"
    with Stream(url, ada) as stream, Stream(page, ada) as watched:
        row = ToolApproval(run=run, key="k", call_id="c1", tool="pay", arguments={"amount": 5})
        lifecycle.suspend(Attempt(run), [row], {})
        asked = stream.until(is_named("approval.requested")).data["payload"]
        assert (asked["tool"], asked["arguments"]) == ("pay", {"amount": 5})
        assert asked["approval_id"] == str(row.pk)
        watched.until(lambda message: "waiting" in str(message.data.get("stamp", "")))
        services.decide_approval(row, False, by=ada, reason="No.")
        decided = stream.until(is_named("approval.decided")).data["payload"]
        assert (decided["decision"], decided["by"]) == ("rejected", "ada")
        watched.until(lambda message: "waiting" not in str(message.data.get("stamp", "waiting")))


def test_a_stream_that_names_two_conversations_is_refused(client: Client) -> None:
    response = client.get("/agents/stream/?session=a&session=b")
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == ["session"]
