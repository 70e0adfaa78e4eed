"""The tests' own servers, processes, browser and models do what the other tests rely on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from agents import Agent, Runner, function_tool
from agents.models.openai_responses import OpenAIResponsesModel
from django.contrib.auth.models import Group, User
from django.db import connection, connections
from django.tasks import default_task_backend, task
from openai import APIConnectionError, AsyncOpenAI, RateLimitError
from psycopg import OperationalError, connect
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from agentic_django import registry
from tests.support.agents import call_tool
from tests.support.openai_server import Call, Cut, Failure, Hang, OpenAIServer, Reply
from tests.support.processes import Project, wait_until
from tests.support.servers import Postgres, Valkey, new_database


@task
def write_group(name: str) -> int:
    """Write a row, from wherever the task runs."""
    Group.objects.create(name=name)
    return os.getpid()


@task
def sleep(seconds: float) -> None:
    """Take a while."""
    time.sleep(seconds)


# Databases


@pytest.mark.django_db(transaction=True)
def test_another_thread_sees_and_writes_the_test_database() -> None:
    Group.objects.create(name="first")
    seen = []

    def work() -> None:
        seen.append(Group.objects.get().name)
        Group.objects.create(name="second")
        connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["first"]
    assert Group.objects.count() == 2


@pytest.mark.django_db
def test_the_database_is_the_one_that_was_asked_for() -> None:
    wanted = os.environ.get("AGENTIC_TEST_DATABASE", "sqlite")
    assert connection.vendor == {"postgres": "postgresql"}.get(wanted, wanted)


@pytest.mark.postgres
def test_new_databases_are_migrated_and_separate() -> None:
    with new_database() as first, new_database() as second:
        with connect(first, autocommit=True) as writer:
            writer.execute("INSERT INTO auth_group (name) VALUES ('only here')")
        with connect(second) as reader:
            assert reader.execute("SELECT count(*) FROM auth_group").fetchone() == (0,)


@pytest.mark.postgres
def test_postgres_keeps_what_was_committed_before_a_crash(postgres: Postgres) -> None:
    with new_database(postgres.url()) as url:
        with connect(url, autocommit=True) as client:
            client.execute("INSERT INTO auth_group (name) VALUES ('kept')")
            postgres.crash()
            with pytest.raises(OperationalError):
                client.execute("SELECT 1")
        with pytest.raises(OperationalError):
            connect(url)
        postgres.start()
        with connect(url) as client:
            assert client.execute("SELECT name FROM auth_group").fetchall() == [("kept",)]


def test_valkey_forgets_all_and_comes_back_on_its_port(own_valkey: Valkey) -> None:
    port = own_valkey.port
    with own_valkey.client() as client:
        client.set("key", "value")
        own_valkey.flush()
        assert client.get("key") is None
        client.set("key", "value")
        own_valkey.kill()
        with pytest.raises(RedisConnectionError):
            client.get("key")
        own_valkey.start()
        assert own_valkey.port == port
        assert client.get("key") is None


# Processes


@pytest.mark.postgres
def test_a_stock_rq_worker_executes_a_task_in_its_own_process(in_project: Project) -> None:
    with in_project.rq_worker() as worker:
        result = write_group.enqueue("from the worker")
        wait_until(Group.objects.filter(name="from the worker").exists, what=worker.output)
        wait_until(lambda: default_task_backend.get_result(result.id).is_finished)
        assert default_task_backend.get_result(result.id).return_value != os.getpid()
    assert worker.family() == []


@pytest.mark.postgres
def test_killing_a_worker_ends_the_job_it_is_at_too(in_project: Project) -> None:
    with in_project.rq_worker() as worker:
        sleep.enqueue(60)
        job = wait_until(worker.children, what=worker.output)
        worker.kill_alone()
        assert all(process.is_running() for process in job)
        worker.kill()
        assert worker.family() == []


@pytest.mark.postgres
def test_a_stopped_process_goes_on_after_sigcont(in_project: Project) -> None:
    with in_project.rq_worker() as worker:
        worker.signal_all(signal.SIGSTOP)
        write_group.enqueue("later")
        time.sleep(0.5)
        assert not Group.objects.exists()
        worker.signal_all(signal.SIGCONT)
        wait_until(Group.objects.exists, what=worker.output)


@pytest.mark.postgres
def test_a_project_ends_with_its_test(project: Project, django_db_blocker: Any) -> None:
    before = connections.settings["default"]["NAME"]
    with django_db_blocker.unblock(), project.in_process():
        assert connection.vendor == "postgresql"
        assert connection.settings_dict["NAME"] in project.database_url
    assert connections.settings["default"]["NAME"] == before


def groups_in(project: Project) -> int:
    """Count the rows from outside Django."""
    with closing(sqlite3.connect(urlsplit(project.database_url).path)) as file:
        return int(file.execute("SELECT count(*) FROM auth_group").fetchone()[0])


def test_a_subprocess_works_in_the_projects_database(sqlite_project: Project) -> None:
    make = "from django.contrib.auth.models import Group\nGroup.objects.create(name='x')"
    sqlite_project.python(make)
    assert groups_in(sqlite_project) == 1
    with pytest.raises(RuntimeError, match="IntegrityError"):
        sqlite_project.python(make)


def test_the_database_worker_executes_a_task(sqlite_project: Project) -> None:
    sqlite_project.tasks = "database"
    enqueue = "from tests.project.test_infrastructure import write_group\nwrite_group.enqueue('x')"
    sqlite_project.python(enqueue)
    with sqlite_project.db_worker() as worker:
        wait_until(lambda: groups_in(sqlite_project) == 1, what=worker.output)


def test_a_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    project = Project("sqlite://:memory:", directory=tmp_path)
    broken = project.process("-c", "raise SystemExit('no such thing')", ready=lambda _: False)
    with pytest.raises(RuntimeError, match="no such thing"), broken:
        pass


def test_no_test_reaches_the_network() -> None:
    with pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


# Models


@function_tool
def order_status(number: int) -> str:
    """Tell an order's status."""
    return f"Order {number} is on its way"


def agent_over(server: OpenAIServer, *, max_retries: int = 0) -> Agent[Any]:
    client = AsyncOpenAI(base_url=server.base_url, api_key="sk-test", max_retries=max_retries)
    model = OpenAIResponsesModel(model="gpt-5-mini", openai_client=client)
    return Agent(name="support", instructions="Help.", model=model, tools=[order_status])


async def streamed(agent: Agent[Any], text: str) -> tuple[Any, list[str]]:
    async with agent.model._client:  # type: ignore[union-attr]
        result = Runner.run_streamed(agent, text)
        events = [event.data async for event in result.stream_events() if hasattr(event, "data")]
    return result, [event.type for event in events]


def test_the_sdk_streams_a_tool_call_and_an_answer_over_http(openai_server: OpenAIServer) -> None:
    openai_server.enqueue(Call("order_status", {"number": 7}), "It is on its way.")
    result, kinds = asyncio.run(streamed(agent_over(openai_server), "Where is order 7?"))
    assert result.final_output == "It is on its way."
    assert result.context_wrapper.usage.total_tokens == 30
    assert result.context_wrapper.usage.requests == 2
    first, second = openai_server.requests
    assert first["stream"] is True
    assert [item["content"] for item in first["input"]] == ["Where is order 7?"]
    assert [tool["name"] for tool in first["tools"]] == ["order_status"]
    assert second["input"][-1]["output"] == "Order 7 is on its way"
    assert openai_server.headers[0]["authorization"] == "Bearer sk-test"
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
    ]


def test_the_sdk_runs_parallel_calls_without_streaming(openai_server: OpenAIServer) -> None:
    calls = [Call("order_status", {"number": n}) for n in (1, 2)]
    openai_server.enqueue(Reply(*calls, usage=(3, 2)), "Both are on their way.")

    async def work() -> Any:
        agent = agent_over(openai_server)
        async with agent.model._client:  # type: ignore[union-attr]
            return await Runner.run(agent, "Where are orders 1 and 2?")

    result = asyncio.run(work())
    assert result.final_output == "Both are on their way."
    assert result.context_wrapper.usage.total_tokens == 20
    outputs = [item["output"] for item in openai_server.requests[1]["input"] if "output" in item]
    assert outputs == ["Order 1 is on its way", "Order 2 is on its way"]


def test_a_refusal_carries_its_status_and_retry_after(openai_server: OpenAIServer) -> None:
    openai_server.enqueue(Failure(429, "Slow down.", "rate_limit_exceeded", retry_after=3))
    with pytest.raises(RateLimitError) as refused:
        asyncio.run(streamed(agent_over(openai_server), "Hello"))
    assert refused.value.response.headers["retry-after"] == "3"


def test_the_client_itself_retries_a_server_error(openai_server: OpenAIServer) -> None:
    openai_server.enqueue(Failure(500, retry_after=0.01), "Hello to you.")
    result, _ = asyncio.run(streamed(agent_over(openai_server, max_retries=1), "Hello"))
    assert result.final_output == "Hello to you."


def test_a_cut_stream_is_a_connection_error(openai_server: OpenAIServer) -> None:
    openai_server.enqueue(Cut(Reply("A long answer"), events=5))
    with pytest.raises(APIConnectionError):
        asyncio.run(streamed(agent_over(openai_server), "Hello"))


def test_the_server_notices_a_client_that_gives_up(openai_server: OpenAIServer) -> None:
    openai_server.enqueue(Hang(Reply("A long answer"), events=6))

    async def give_up() -> None:
        async with asyncio.timeout(1):
            await streamed(agent_over(openai_server), "Hello")

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert openai_server.wait_for_disconnect(5)


def test_a_scripted_agent_follows_its_script(scripted: Any) -> None:
    model = scripted(
        "never heard of", call_tool("order_status", number=3), "Ok.", tools=[order_status]
    )
    agent = registry.get("never heard of")()
    result = asyncio.run(Runner.run(agent, "Where is order 3?"))
    assert result.final_output == "Ok."
    assert model.calls[1].input[-1]["output"] == "Order 3 is on its way"
    model.assert_complete()


def test_no_script_outlives_its_test() -> None:
    with pytest.raises(LookupError):
        registry.get("never heard of")
    result = asyncio.run(Runner.run(registry.get("default")(), "Hello"))
    assert result.final_output == "You said: Hello"


# Browser


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
def test_the_browser_meets_the_live_server_logged_in(
    live_server: Any, open_page: Any, admin_user: User, screenshot: Any
) -> None:
    page = open_page(base_url=live_server.url, user=admin_user, dark=True, narrow=True)
    page.goto("/admin/")
    assert page.inner_text("h1") == "Site administration"
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert page.evaluate("innerWidth") == 360
    assert User.objects.count() == 1  # The ORM works beside Playwright's event loop.
    assert screenshot(page, "infrastructure").stat().st_size > 1000


@pytest.mark.browser
def test_the_browser_reports_errors_and_violations(open_page: Any, problems: Any) -> None:
    page = open_page()
    page.route(
        "http://localhost/",
        lambda route: route.fulfill(
            content_type="text/html",
            headers={"Content-Security-Policy": "script-src 'self'"},
            body="<p style='color: red'>Hi</p><script>alert(1)</script>",
        ),
    )
    page.goto("http://localhost/")
    page.evaluate("setTimeout(() => { throw new Error('thrown') })")
    page.wait_for_function("true")
    wait_until(lambda: page.wait_for_timeout(20) or any("thrown" in p for p in problems.seen))
    text = "\n".join(problems.unexpected())
    assert "CSP violation: script-src-elem" in text
    assert "page error" in text
    problems.allow("CSP violation|Content Security Policy|thrown")
    assert problems.unexpected() == []


@pytest.mark.browser
@pytest.mark.django_db
def test_a_browser_test_is_in_the_transaction_of_its_database(user: User, page: Any) -> None:
    assert connection.in_atomic_block
    assert User.objects.get() == user


@pytest.mark.browser
def test_a_page_without_javascript_runs_none(open_page: Any) -> None:
    page = open_page(javascript=False)
    page.set_content("<p>plain</p><script>document.body.textContent = 'scripted'</script>")
    assert page.inner_text("p") == "plain"


def test_no_event_loop_is_left_by_the_browser() -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert "DJANGO_ALLOW_ASYNC_UNSAFE" not in os.environ


@pytest.mark.browser
@pytest.mark.postgres
def test_the_browser_meets_a_web_server_in_another_process(
    in_project: Project, open_page: Any
) -> None:
    user = User.objects.create_superuser("ada", password="ada-password")
    with in_project.web_server() as server:
        page = open_page(base_url=server.url)
        page.goto("/admin/")
        page.fill("[name=username]", user.username)
        page.fill("[name=password]", "ada-password")
        page.click("[type=submit]")
        assert page.inner_text("h1") == "Site administration"


def test_valkey_is_empty_at_each_test(valkey: Valkey) -> None:
    with Redis(host="127.0.0.1", port=valkey.port) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")
