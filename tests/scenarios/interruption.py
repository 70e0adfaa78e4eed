"""Attempts in forked processes that die, or are paused, just before or after a chosen commit.

The parent has everything imported and no threads, so that a fork is cheap and sound. Run as a
program, it interrupts scenarios at every commit and writes, to ``AGENTIC_TEST_REPORTS``, where
what came of it differs from the uninterrupted run::

    python -m tests.scenarios.interruption kill plain parallel
    python -m tests.scenarios.interruption pause parallel
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, cast

import django

django.setup()

from agents import Runner  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.db import connection, connections  # noqa: E402
from django.db.backends.base.base import BaseDatabaseWrapper  # noqa: E402
from django.db.backends.utils import CursorWrapper  # noqa: E402
from django.db.models.functions import Now  # noqa: E402
from django.test import override_settings  # noqa: E402

from agentic_django import services  # noqa: E402
from agentic_django.engine import approvals, recovery, retries, session_items  # noqa: E402
from agentic_django.models import AgentRun, AgentSession, ToolApproval  # noqa: E402
from agentic_django.openai_agents import conversion  # noqa: E402
from agentic_django.worker import executor  # noqa: E402
from tests.scenarios import effects  # noqa: E402
from tests.scenarios.agents import CRASHED, LOWERED, REFUSED, transfer  # noqa: E402
from tests.scenarios.record import Record, record_of  # noqa: E402

KILLED = 9
LEASE = 60.0
SHORT_LEASE = 0.15
"""Of a process that is paused: it may hold its row, so that nobody else can end its lease."""

type Act = Callable[[], None]


@dataclass
class Commits:
    """Counts what this process commits, statements outside of transactions included."""

    at: int = 0
    before: bool = False
    act: Act = lambda: None
    count: int = 0

    def install(self) -> None:
        """Count from now on, and act at the chosen commit."""
        wrapper, cursor_wrapper = cast("Any", BaseDatabaseWrapper), cast("Any", CursorWrapper)
        commit, execute = wrapper._commit, cursor_wrapper._execute

        def counted_commit(connection: Any) -> None:
            self.around(lambda: commit(connection))

        def counted_execute(cursor: Any, sql: str, *args: Any) -> Any:
            if cursor.db.in_atomic_block or not _is_write(sql):
                return execute(cursor, sql, *args)
            return self.around(lambda: execute(cursor, sql, *args))

        wrapper._commit = counted_commit
        cursor_wrapper._execute = counted_execute

    def around(self, commit: Callable[[], Any]) -> Any:
        """Commit; act before or after it if it is the chosen one.

        The heart and the writer of drafts commit whenever it is time, and are not counted; for
        the same reason only the parent sweeps.
        """
        if threading.current_thread().name in {"agentic-heartbeat", "agentic-drafts"}:
            return commit()
        self.count += 1
        chosen = self.count == self.at
        if chosen and self.before:
            self.act()
        result = commit()
        if chosen and not self.before:
            self.act()
        return result


def _is_write(sql: str) -> bool:
    return sql.split(None, 1)[0] in {"INSERT", "UPDATE", "DELETE"}


def die() -> None:
    """End this process as SIGKILL does."""
    os._exit(KILLED)


def pause() -> None:
    """Stop until somebody lets this process go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


def attempt(run: AgentRun, commits: Commits) -> int:
    """Begin an attempt in a forked process; returns its id."""
    connections.close_all()
    pid = os.fork()
    if not pid:
        _be_attempt(run, commits)
    return pid


def _be_attempt(run: AgentRun, commits: Commits) -> None:
    try:
        commits.install()
        live(run)
    except BaseException:  # noqa: BLE001 - this process ends here, whatever happened
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def live(run: AgentRun) -> None:
    """Carry a run through one attempt; if a person is asked, decide, and so on."""
    decide(run)
    executor.execute(str(run.pk))
    while decide(run):
        executor.execute(str(run.pk))


def decide(run: AgentRun) -> int:
    """Decide all that a run asks, as its arguments say; returns how much that was.

    Calls that may have happened are left to the test.
    """
    calls = ToolApproval.objects.open().filter(run=run).exclude(kind="intent")
    asked = list(calls.select_related("run").order_by("key"))
    for approval in asked:
        if approval.options:
            services.answer_approval(approval, approval.options[-1])
        elif approval.arguments["amount"] == LOWERED:
            services.decide_approval(approval, True, arguments={"amount": 50})
        else:
            approve = approval.arguments["amount"] != REFUSED
            services.decide_approval(approval, approve, reason=f"By rule {approval.call_id}.")
    return len(asked)


def end_of(pid: int) -> int:
    """Wait for a process and return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lose(run: AgentRun) -> None:
    """Let the lease end of a run whose process has died, and find the run."""
    AgentRun.objects.running().filter(pk=run.pk).update(lease_ends_at=Now())
    recovery.sweep()


def new_run(scenario: str) -> AgentRun:
    """Return a pending run of a conversation that has a history."""
    user, _ = User.objects.get_or_create(username="ada")
    session = AgentSession.objects.create(owner=user, session_key=os.urandom(8).hex())
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    session_items.append_items(session, said)
    return AgentRun.objects.create(session=session, agent_key=scenario, input_payload="Begin.")


def finish(run: AgentRun, *, by_itself: bool = False) -> None:
    """Carry a run to its end in another process, however many attempts that takes.

    Or only to where it waits for a person, if it is to get on by itself.
    """
    for _ in range(10):
        run.refresh_from_db()
        if run.is_finished or (by_itself and run.status == "waiting"):
            return
        recovery.sweep()
        status = end_of(attempt(run, Commits()))
        assert status == 0, f"An attempt ended with status {status}."
    raise AssertionError(f"The run does not end: {run.status}, attempt {run.attempt}.")


def count_commits(scenario: str) -> tuple[int, Record]:
    """Return how many commits an uninterrupted run has, and what came of it."""
    run = new_run(scenario)
    reader, writer = os.pipe()
    commits = Commits()
    connections.close_all()
    pid = os.fork()
    if not pid:
        commits.install()
        live(run)
        os.write(writer, str(commits.count).encode())
        os._exit(0)
    end_of(pid)
    os.close(writer)
    count = int(os.read(reader, 100))
    os.close(reader)
    finish(run)  # What failed and may pass is tried again.
    return count, record_of(run)


@dataclass
class Report:
    """What interrupting a scenario at every commit came to."""

    scenario: str
    commits: int
    uninterrupted: str
    interruptions: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)

    def compare(self, where: str, run: AgentRun, expected: Record) -> None:
        """Note how an interrupted run differs from the uninterrupted one."""
        self.interruptions += 1
        found = record_of(run)
        self.problems += [f"{where}: {text}" for text in found.differences(expected)]
        self.problems += [f"{where}: {text}" for text in found.problems]


def kill_everywhere(scenario: str) -> Report:
    """Kill an attempt before and after each of its commits, one run each; finish the run."""
    count, expected = count_commits(scenario)
    report = Report(scenario, count, expected.status)
    for at, before in _places(count):
        run = new_run(scenario)
        if end_of(attempt(run, Commits(at, before, die))) != KILLED:
            report.problems.append(f"There was no commit {at}.")
        lose(run)
        finish(run)
        report.compare(f"killed {'before' if before else 'after'} commit {at}", run, expected)
    return report


def kill_always(scenario: str) -> Report:
    """Kill every attempt after its second commit: the claim, and one more."""
    count, expected = count_commits(scenario)
    report, run = Report(scenario, count, expected.status), new_run(scenario)
    while not AgentRun.objects.get(pk=run.pk).is_finished:
        end_of(attempt(run, Commits(2, before=False, act=die)))
        report.interruptions += 1
        lose(run)
    report.compare("killed after each second commit", run, expected)
    return report


def kill_paying(scenario: str) -> Report:
    """Kill an attempt at each commit, of a run with a call that must not be repeated."""
    count, expected = count_commits(scenario)
    report = Report(scenario, count, expected.status)
    for at, before in _places(count):
        run = new_run(scenario)
        end_of(attempt(run, Commits(at, before, die)))
        lose(run)
        finish(run, by_itself=True)
        report.interruptions += 1
        found, where = record_of(run), f"killed {'before' if before else 'after'} commit {at}"
        calls = [effect for effect in effects.read(str(run.pk)) if ":tool:" in effect.key]
        if len(calls) > 1:
            report.problems.append(f"{where}: called {len(calls)} times")
        if found.status == "waiting":
            report.refused += 1
        else:
            report.problems += [f"{where}: {text}" for text in found.differences(expected)]
    return report


def pause_everywhere(scenario: str) -> Report:
    """Pause an attempt at each commit past its lease; let another finish; let it go on."""
    count, expected = count_commits(scenario)
    report = Report(scenario, count, expected.status)
    for at, before in _places(count):
        run = new_run(scenario)
        pid = attempt(run, Commits(at, before, pause))
        os.waitpid(pid, os.WUNTRACED)
        time.sleep(SHORT_LEASE)
        _take_over(run)
        taken = record_of(run)
        os.kill(pid, signal.SIGCONT)
        status = end_of(pid)
        where = f"paused {'before' if before else 'after'} commit {at}"
        if status:
            report.problems.append(f"{where}: the paused process ended with status {status}")
        if taken.status == "completed":  # Else the paused one held the row: it may finish.
            found = record_of(run)
            report.problems += [f"{where}: {text}" for text in found.differences(taken)]
        finish(run)
        report.compare(where, run, expected)
    return report


def _take_over(run: AgentRun) -> None:
    """Finish a run whose process is paused, unless that holds its row in a transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '2s'")  # The sweep fails if it waits for what is paused.
        swept = recovery.sweep()
        cursor.execute("RESET lock_timeout")
    if swept.requeued:
        finish(run)


def _places(count: int) -> Iterator[tuple[int, bool]]:
    return product(range(1, count + 1), (True, False))


def warm() -> None:
    """Have all built that is built at first use, so that no fork has to."""

    async def once() -> None:
        for name in ("everything", "gated"):
            result = Runner.run_streamed(CRASHED[name](), "Begin.")
            async for _ in result.stream_events():
                pass
            for response in result.raw_responses:
                conversion.replay_event(
                    conversion.load_response(conversion.dump_response(response))
                )
            result.to_state()

    asyncio.run(once())
    tool = cast("Any", transfer)
    approvals.validated_answer(ToolApproval(schema=tool.params_json_schema), {"amount": 1})


def main(how: str, *scenarios: str) -> None:
    """Interrupt scenarios and print what came of it."""
    ways = {
        "kill": kill_everywhere,
        "always": kill_always,
        "once": kill_paying,
        "pause": pause_everywhere,
    }
    tasks = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
    retries.backoff = lambda failures: 0.0
    recovery.ensure_sweeping = recovery.sweep_after_attempt = lambda: None
    lease = SHORT_LEASE if how == "pause" else LEASE
    options = {"AGENTIC_DJANGO_LEASE_SECONDS": lease, "AGENTIC_DJANGO_MAX_ATTEMPTS": 6}
    warm()
    gc.freeze()
    with override_settings(TASKS=tasks, **options):
        reports = [vars(ways[how](scenario)) for scenario in scenarios or CRASHED]
    Path(os.environ["AGENTIC_TEST_REPORTS"]).write_text(json.dumps(reports))


if __name__ == "__main__":
    main(*sys.argv[1:])
