"""All rows of the app are in the database of AGENTIC_DJANGO_DATABASE, even without a router."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections

from agentic_django import services
from agentic_django.concurrency.process_state import process
from agentic_django.conf import CleanupPolicy
from agentic_django.engine import approvals, cleanup, events, recovery, sessions
from agentic_django.engine.cleanup import Deleted
from agentic_django.models import AgentEvent, AgentRun, AgentSession, ToolApproval, Visibility
from agentic_django.permissions import Viewer
from agentic_django.presentation import conversation
from agentic_django.sessions import get_session
from agentic_django.streaming import changes
from tests.settings import database

ALIAS = "agents"


class WrongDatabaseError(AssertionError):
    """A statement about the app's tables was sent to the default database."""


def refuse(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
    if "agentic_django_" in sql:
        raise WrongDatabaseError(sql)
    return execute(sql, *rest)


@pytest.fixture
def owner(tmp_path: Path, settings: Any, django_db_blocker: Any, register: Any) -> Iterator[User]:
    """Create a user in a second database, and refuse the app's statements in the first."""
    settings.AGENTIC_DJANGO_DATABASE = ALIAS
    connections.databases[ALIAS] = connections["default"].settings_dict | database(
        f"sqlite://{tmp_path / 'agents.sqlite3'}"
    )
    with django_db_blocker.unblock(), connections["default"].execute_wrapper(refuse):
        for app in ("auth", "agentic_django"):
            call_command("migrate", app, database=ALIAS, verbosity=0)
        yield User.objects.db_manager(ALIAS).create_user("ada")
        process.stop()
        connections[ALIAS].close()
    del connections.databases[ALIAS]
    del connections[ALIAS]


def test_run_and_its_events_are_in_the_database_of_the_app(owner: User, register: Any) -> None:
    async def greet(ctx: Any) -> str:
        return "Hello, Ada."

    register(greet, "work")
    run = services.submit_agent_run(
        owner=owner, input_payload="Hello", session_key="talk", agent_key="work"
    )
    run.refresh_from_db()
    assert (run.status, run.final_output) == ("completed", "Hello, Ada.")
    found = events.events_after(run, 1, limit=100, levels=Visibility.values)
    assert [event.event_type for event in found][-1] == "run.completed"
    assert changes.read_snapshots([run.pk])[run.pk].status == "completed"
    assert conversation.turns_after(AgentRun.objects.using(ALIAS), 0) == [run]
    recovery.sweep()


def test_failed_run_is_retried_and_cancelled_in_the_database_of_the_app(
    owner: User, register: Any
) -> None:
    async def fail(ctx: Any) -> None:
        raise ValueError("It fails.")

    register(fail, "work")
    run = services.submit_agent_run(
        owner=owner, input_payload="Hello", session_key="talk", agent_key="work"
    )
    run.refresh_from_db()
    assert run.status == "failed"
    services.retry_agent_run(run, by=owner)
    AgentRun.objects.using(ALIAS).filter(pk=run.pk).update(status="pending")
    run.refresh_from_db()
    services.cancel_agent_run(run, by=owner)
    sessions.delete_session(run.session)
    assert not AgentSession.objects.using(ALIAS).exists()


def test_approval_is_found_and_decided_in_the_database_of_the_app(
    owner: User, register: Any
) -> None:
    async def ask(ctx: Any) -> Any:
        return await ctx.ask("Which colour?", options=["red", "blue"])

    register(ask, "work")
    run = services.submit_agent_run(owner=owner, input_payload="Hello", agent_key="work")
    (approval,) = approvals.awaiting(owner, Viewer.for_user(owner))
    services.answer_approval(approval, "red", by=owner)
    run.refresh_from_db()
    assert (run.status, run.final_output) == ("completed", "red")
    assert ToolApproval.objects.using(ALIAS).get().decided_by == owner


def test_cleanup_deletes_from_the_database_of_the_app(owner: User) -> None:
    session = get_session("talk", owner).session
    run = AgentRun(owner=owner, session=session, agent_key="work", input_payload="Hello")
    run.save(using=ALIAS)
    AgentEvent.objects.using(ALIAS).create(
        run=run, sequence=1, event_type="log", visibility="debug"
    )
    old = time.time() - 100 * 86_400
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(old))
    AgentRun.objects.using(ALIAS).update(status="completed", finished_at=moment)
    AgentSession.objects.using(ALIAS).update(updated_at=moment)
    policy = CleanupPolicy(events_days=30, runs_days=30, sessions_days=30)
    expected = Deleted(events=1, runs=1, sessions=1)
    assert cleanup.delete_old(policy, dry_run=True) == expected
    assert cleanup.delete_old(policy) == expected
