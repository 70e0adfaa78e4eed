"""A process keeps the leases of its runs, and lets go of those that it has lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from agents import function_tool
from django.contrib.auth.models import User
from django.db import OperationalError, connections, transaction
from django.db.models.functions import Now

from agentic_django.concurrency.process_state import process
from agentic_django.engine import fenced_writes, heartbeat, recovery
from agentic_django.models import AgentRun
from agentic_django.services import cancel_agent_run, submit_agent_run
from agentic_django.worker import executor
from tests.support.agents import answering, call_tool
from tests.support.attempts import attempt, finish, numbered, recorded
from tests.support.processes import wait_until
from tests.support.rows import make_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("no_queue")]


@pytest.fixture
def run(user: User) -> AgentRun:
    """A pending run of the scripted agent ``default``."""
    return AgentRun.objects.create(
        session=make_session(user), agent_key="default", input_payload="Hello"
    )


@contextmanager
def working(run: AgentRun) -> Iterator[threading.Thread]:
    """Carry a run through an attempt in another thread; what it raises is raised here."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            executor.execute(str(run.pk))
        except BaseException as error:  # noqa: BLE001 - raised below
            raised.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(20)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


class Slow:
    """Tools and a model that take long, and tell of their beginning and end."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended: list[str] = []
        self.release = threading.Event()

    def tools(self) -> list[Any]:
        return [function_tool(self.wait), function_tool(self.block)]

    async def wait(self) -> str:
        """Wait, asynchronously."""
        await self._wait()
        return "waited"

    async def _wait(self) -> None:
        self.began.set()
        try:
            await asyncio.sleep(15)
            self.ended.append("slept")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise

    def block(self) -> str:
        """Wait, synchronously."""
        self.began.set()
        self.release.wait(15)
        self.ended.append("blocked")
        return "blocked"

    async def respond(self, call: Any) -> Any:
        """Wait, as a model."""
        await self._wait()
        return []


@pytest.fixture
def slow() -> Iterator[Slow]:
    """Slow work; what still blocks is released at the end."""
    work = Slow()
    yield work
    work.release.set()


def test_a_blocking_tool_does_not_stop_the_renewal_of_the_lease(
    scripted: Any, run: AgentRun, slow: Slow, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_LEASE_SECONDS = 3
    scripted("default", call_tool("block"), "Done.", tools=slow.tools())
    ends: set[Any] = set()

    def renewed() -> bool:
        assert recovery.sweep().requeued == 0
        ends.add(AgentRun.objects.get(pk=run.pk).lease_ends_at)
        return len(ends) > 4

    with working(run):
        assert slow.began.wait(10)
        began = time.monotonic()
        wait_until(renewed, timeout=15)
        assert time.monotonic() - began > 3  # It would have ended, but for this.
        slow.release.set()
    run.refresh_from_db()
    assert (run.final_output, run.attempt) == ("Done.", 1)
    assert 3 < run.active_seconds < 20


def test_an_attempt_that_lost_its_run_does_not_renew_the_lease(
    scripted: Any, run: AgentRun, slow: Slow, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_LEASE_SECONDS = 0.6
    scripted("default", call_tool("block"), tools=slow.tools())
    with working(run):
        assert slow.began.wait(10)
        end = Now() + timedelta(seconds=60)
        AgentRun.objects.update(attempt=2, holder="another", lease_ends_at=end)
        before = AgentRun.objects.get()
        time.sleep(1)
        slow.release.set()
    after = AgentRun.objects.get()
    assert after.lease_ends_at == before.lease_ends_at
    assert (after.status, after.attempt, after.event_count) == ("running", 2, before.event_count)
    assert recorded(run) == [("model", "default")]


@pytest.mark.parametrize("what", ["tool", "model"])
def test_cancelling_stops_asynchronous_work_within_two_seconds(
    scripted: Any, run: AgentRun, slow: Slow, what: str
) -> None:
    scripted("default", call_tool("wait"), tools=slow.tools())
    if what == "model":
        scripted("default", model=answering(slow.respond))
    with working(run) as thread:
        assert slow.began.wait(10)
        began = time.monotonic()
        cancel_agent_run(AgentRun.objects.get())
        assert AgentRun.objects.get().status == "cancelled"
        thread.join(10)
        wait_until(lambda: slow.ended == ["cancelled"])
        assert time.monotonic() - began < 2
    assert numbered(run)[-1] == "run.cancelled"


def test_a_synchronous_tool_is_abandoned_and_its_result_refused(
    scripted: Any, run: AgentRun, slow: Slow
) -> None:
    model = scripted("default", call_tool("block"), "Next.", tools=slow.tools())
    with working(run):
        assert slow.began.wait(10)
        cancel_agent_run(AgentRun.objects.get())
        before = numbered(run)
        time.sleep(1.5)
        slow.release.set()
    assert slow.ended == ["blocked"]
    assert recorded(run) == [("model", "default")]
    assert numbered(run) == before
    assert run.usage["total_tokens"] == 15
    following = AgentRun.objects.create(
        session=run.session, agent_key="default", input_payload="And now?"
    )
    assert finish(following).final_output == "Next."
    asked = model.calls[1].input
    assert [item.get("type", item.get("role")) for item in asked] == [
        "user",
        "function_call",
        "function_call_output",
        "user",
    ]


@pytest.mark.parametrize("what", ["wait", "block", "model"])
def test_a_run_times_out_at_its_deadline(
    scripted: Any, run: AgentRun, slow: Slow, settings: Any, what: str
) -> None:
    settings.AGENTIC_DJANGO_RUN_TIMEOUT_SECONDS = 0.8
    scripted("default", call_tool(what), tools=slow.tools())
    if what == "model":
        scripted("default", model=answering(slow.respond))
    began = time.monotonic()
    with working(run):
        wait_until(lambda: AgentRun.objects.get().status == "timed_out", timeout=5)
        assert time.monotonic() - began < 4
        slow.release.set()
    run.refresh_from_db()
    assert (run.status, run.error_code) == ("timed_out", "timed_out")
    wait_until(lambda: slow.ended == ["blocked" if what == "block" else "cancelled"])
    assert numbered(run)[-1] == "run.timed_out"
    assert 0.7 < run.active_seconds < 4
    assert recorded(run) == ([] if what == "model" else [("model", "default")])


def test_active_time_is_summed_over_attempts(scripted: Any, run: AgentRun, settings: Any) -> None:
    scripted("default", "Done.")
    settings.AGENTIC_DJANGO_RUN_TIMEOUT_SECONDS = 10
    AgentRun.objects.update(active_seconds=11)
    run.refresh_from_db()
    assert attempt(run).status == "timed_out"


def test_an_interrupting_message_cancels_the_running_run(
    scripted: Any, run: AgentRun, slow: Slow, user: User
) -> None:
    scripted("default", call_tool("wait"), "Next.", tools=slow.tools())
    assert run.session is not None
    with working(run):
        assert slow.began.wait(10)
        following = submit_agent_run(
            owner=user,
            input_payload="Rather this",
            session_key=run.session.session_key,
            agent_key="default",
            on_busy="interrupt",
        )
        assert AgentRun.objects.get(pk=run.pk).status == "cancelled"
    wait_until(lambda: slow.ended == ["cancelled"])
    assert finish(following).final_output == "Next."


def test_the_heartbeat_survives_an_unreachable_database(
    scripted: Any,
    run: AgentRun,
    slow: Slow,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.AGENTIC_DJANGO_LEASE_SECONDS = 3
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.1)
    renew = fenced_writes.renew_leases
    failed: list[int] = []

    def failing(*args: Any) -> None:
        if len(failed) < 2:
            failed.append(1)
            raise OperationalError("The database is away.")
        renew(*args)
        failed.append(2)

    monkeypatch.setattr(fenced_writes, "renew_leases", failing)
    scripted("default", call_tool("block"), "Done.", tools=slow.tools())
    with working(run):
        wait_until(lambda: 2 in failed, timeout=10)
        slow.release.set()
    run.refresh_from_db()
    assert run.final_output == "Done."
    assert "Heartbeat failed" in caplog.text


def test_the_thread_ends_after_the_last_lease(
    scripted: Any, run: AgentRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    scripted("default", "Done.")
    attempt(run)
    wait_until(lambda: not process.get(heartbeat.Heartbeat).is_running, timeout=5)


def test_a_run_in_its_callers_transaction_has_no_heartbeat(
    scripted: Any, run: AgentRun, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)

    @function_tool
    def rest() -> str:
        """Rest for some beats."""
        time.sleep(0.3)
        return "rested"

    scripted("default", call_tool("rest"), "Done.", tools=[rest])
    with transaction.atomic():
        assert attempt(run).final_output == "Done."
