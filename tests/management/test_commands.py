"""The commands say what they did, refuse what makes no sense, and are safe to repeat."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db.models.functions import Now

from agentic_django.engine import recovery
from agentic_django.models import AgentEvent, AgentRun, AgentSession
from tests.support.processes import Project
from tests.support.rows import make_events, make_run, make_session

pytestmark = pytest.mark.django_db


def run_command(name: str, *arguments: str, **options: Any) -> list[str]:
    """Return the lines that a command of the app writes."""
    out = StringIO()
    call_command(f"agentic_django_{name}", *arguments, stdout=out, **options)
    return out.getvalue().splitlines()


@pytest.fixture
def old_rows(user: User) -> None:
    make_events(make_run(user, days_ago=40), 3)
    make_run(user, "failed", days_ago=70)
    make_session(user, days_ago=100)


# agentic_django_cleanup


def test_cleanup_deletes_by_the_policy_and_counts(old_rows: None, settings: Any) -> None:
    settings.AGENTIC_DJANGO_CLEANUP_POLICY = {
        "events_days": 30,
        "runs_days": 60,
        "sessions_days": 90,
    }
    assert run_command("cleanup") == [
        "Deleted events: 3",
        "Deleted runs: 1",
        "Deleted sessions: 1",
        "Deleted rate windows: 0",
    ]
    assert AgentRun.objects.count() == 1


def test_cleanup_without_a_policy_deletes_nothing(old_rows: None) -> None:
    assert run_command("cleanup")[:3] == [
        "Deleted events: 0",
        "Deleted runs: 0",
        "Deleted sessions: 0",
    ]
    assert AgentRun.objects.count() == 2


def test_options_of_cleanup_take_precedence_over_the_policy(old_rows: None, settings: Any) -> None:
    settings.AGENTIC_DJANGO_CLEANUP_POLICY = {"runs_days": 60, "runs_statuses": ["failed"]}
    assert run_command("cleanup", "--runs-days", "90")[1] == "Deleted runs: 0"
    assert run_command("cleanup", "--runs-days=0")[1] == "Deleted runs: 1"
    assert AgentRun.objects.get().status == "completed"


def test_cleanup_accepts_options_from_code(old_rows: None) -> None:
    assert run_command("cleanup", events_days=30, batch_size=2)[0] == "Deleted events: 3"
    assert run_command("cleanup", sessions_days=99.5)[2] == "Deleted sessions: 1"


def test_a_dry_run_of_cleanup_prints_the_counts(old_rows: None) -> None:
    arguments = ["--events-days=30", "--runs-days=60", "--sessions-days=90"]
    assert run_command("cleanup", "--dry-run", *arguments) == [
        "Would delete events: 3",
        "Would delete runs: 1",
        "Would delete sessions: 1",
        "Would delete rate windows: 0",
    ]
    assert (AgentEvent.objects.count(), AgentSession.objects.count()) == (3, 1)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--runs-days=x", "--runs-days=x: .*valid number"),
        ("--runs-days=-1", "--runs-days=-1: .*greater than or equal to 0"),
        ("--events-days=nan", "--events-days=nan: "),
        ("--sessions-days=inf", "--sessions-days=inf: "),
        ("--batch-size=0", "--batch-size=0: .*greater than 0"),
        ("--batch-size=1.5", "--batch-size=1.5: .*integer"),
        ("--batch-size=", "--batch-size=: "),
    ],
)
def test_cleanup_refuses_an_invalid_number_with_an_example(
    old_rows: None, option: str, reason: str
) -> None:
    with pytest.raises(CommandError, match=f"{reason}.*for example {option.partition('=')[0]}="):
        run_command("cleanup", "--runs-days=0", option)
    assert AgentRun.objects.count() == 2


def test_cleanup_refuses_an_invalid_policy(old_rows: None, settings: Any) -> None:
    settings.AGENTIC_DJANGO_CLEANUP_POLICY = {"runs_days": 0, "runs_statuses": ["running"]}
    with pytest.raises(CommandError, match="CLEANUP_POLICY"):
        run_command("cleanup")
    assert AgentRun.objects.count() == 2


def test_cleanup_works_from_a_shell(sqlite_project: Project) -> None:
    written = sqlite_project.manage("agentic_django_cleanup", "--runs-days=30", "--dry-run")
    assert "Would delete runs: 0" in written
    with pytest.raises(RuntimeError, match="CommandError: --runs-days=x"):
        sqlite_project.manage("agentic_django_cleanup", "--runs-days=x")


# agentic_django_recover_runs


@pytest.fixture
def lose(user: User) -> Callable[..., AgentRun]:
    """Make a run whose worker is gone."""

    def make(**columns: Any) -> AgentRun:
        run = make_run(user, "running")
        past = Now() - timedelta(seconds=1)
        AgentRun.objects.filter(pk=run.pk).update(**{"lease_ends_at": past, **columns})
        return run

    return make


def test_recovery_requeues_orphaned_runs(
    lose: Any, django_capture_on_commit_callbacks: Any
) -> None:
    run = lose()
    assert run_command("recover_runs")[0] == "Requeued 1 run."
    run.refresh_from_db()
    assert (run.status, run.failures) == ("pending", 1)


def test_recovery_executes_requeued_runs_if_tasks_execute_immediately(
    lose: Any, django_capture_on_commit_callbacks: Any
) -> None:
    run = lose()
    with django_capture_on_commit_callbacks(execute=True):
        run_command("recover_runs", "--mode=requeue")
    run.refresh_from_db()
    assert (run.status, run.attempt) == ("completed", 2)


def test_recovery_fails_orphaned_runs_on_request(lose: Any) -> None:
    run = lose()
    assert run_command("recover_runs", "--mode=fail")[:2] == ["Requeued 0 runs.", "Failed 1 run."]
    run.refresh_from_db()
    assert (run.status, run.error_code) == ("failed", "lost")
    assert run.error
    assert run.finished_at


@pytest.mark.parametrize("mode", ["requeue", "fail"])
def test_recovery_keeps_runs_of_live_workers(user: User, mode: str) -> None:
    run = make_run(user, "running")
    assert run_command("recover_runs", f"--mode={mode}")[:2] == [
        "Requeued 0 runs.",
        "Failed 0 runs.",
    ]
    assert AgentRun.objects.get(pk=run.pk).status == "running"


def test_forced_recovery_requeues_runs_of_live_workers(user: User) -> None:
    run = make_run(user, "running")
    assert run_command("recover_runs", "--mode=fail", "--force")[1] == "Failed 1 run."
    assert AgentRun.objects.get(pk=run.pk).status == "failed"


@pytest.mark.parametrize("status", ["waiting", "completed", "failed", "cancelled", "timed_out"])
def test_recovery_keeps_runs_without_a_lease(user: User, status: str) -> None:
    run = make_run(user, status)
    run_command("recover_runs", "--mode=fail", "--force")
    assert AgentRun.objects.get(pk=run.pk).status == status


def test_recovery_enqueues_runs_that_the_queue_has_lost(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    run = make_run(user, "pending")
    AgentRun.objects.filter(pk=run.pk).update(updated_at=Now() - timedelta(hours=1))
    with django_capture_on_commit_callbacks(execute=True):
        assert run_command("recover_runs")[2] == "Enqueued 1 run."
    run.refresh_from_db()
    assert run.status == "completed"


def test_a_second_recovery_changes_nothing(lose: Any) -> None:
    lose()
    assert run_command("recover_runs")[0] == "Requeued 1 run."
    assert run_command("recover_runs")[0] == "Requeued 0 runs."


@pytest.mark.parametrize(
    ("mode", "failures", "foretold"),
    [
        ("requeue", 0, ["Would have requeued 1 run.", "Would have failed 0 runs."]),
        ("requeue", 3, ["Would have requeued 0 runs.", "Would have failed 1 run."]),
        ("fail", 0, ["Would have requeued 0 runs.", "Would have failed 1 run."]),
    ],
)
def test_a_dry_run_of_recovery_prints_the_counts_of_the_next_recovery(
    lose: Any, mode: str, failures: int, foretold: list[str]
) -> None:
    run = lose(failures=failures)
    assert run_command("recover_runs", f"--mode={mode}", "--dry-run")[:2] == foretold
    assert AgentRun.objects.get(pk=run.pk).status == "running"
    swept = recovery.sweep(mode)
    assert foretold[0] == f"Would have requeued {swept.requeued} run{'s' * (not swept.requeued)}."


def test_a_dry_run_of_recovery_counts_inline_runs_as_failed(lose: Any) -> None:
    lose(is_inline=True)
    foretold = run_command("recover_runs", "--dry-run")
    assert foretold[:2] == ["Would have requeued 0 runs.", "Would have failed 1 run."]
    assert run_command("recover_runs")[:2] == ["Requeued 0 runs.", "Failed 1 run."]


def test_recovery_handles_more_runs_than_one_sweep(
    lose: Any, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_BATCH", 2)
    for _ in range(5):
        lose()
    sent = [make_run(user, "pending") for _ in range(5)]
    AgentRun.objects.filter(pk__in=[run.pk for run in sent]).update(
        updated_at=Now() - timedelta(hours=1)
    )
    assert run_command("recover_runs", "--mode=fail", "--dry-run")[1] == "Would have failed 5 runs."
    assert run_command("recover_runs", "--mode=fail") == [
        "Requeued 0 runs.",
        "Failed 5 runs.",
        "Enqueued 5 runs.",
        "Expired 0 approvals.",
    ]
    assert not AgentRun.objects.filter(status="running").exists()


def test_a_lost_run_after_many_queued_runs_is_enqueued(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_BATCH", 2)
    made = [make_run(user, "pending") for _ in range(5)]
    AgentRun.objects.filter(pk__in=[run.pk for run in made]).update(
        updated_at=Now() - timedelta(hours=1)
    )
    last = made[-1]
    AgentRun.objects.filter(pk=last.pk).update(enqueued_at=Now() - timedelta(minutes=30))
    monkeypatch.setattr(recovery, "_is_queued", lambda run: run.pk != last.pk)
    assert run_command("recover_runs")[2] == "Enqueued 1 run."


@pytest.mark.parametrize("mode", ["retry", "ignore", ""])
def test_recovery_refuses_an_unknown_mode(mode: str) -> None:
    with pytest.raises(CommandError, match="invalid choice"):
        run_command("recover_runs", f"--mode={mode}")


def test_recovery_works_from_a_shell(sqlite_project: Project) -> None:
    written = sqlite_project.manage("agentic_django_recover_runs", "--mode=requeue")
    assert written.splitlines() == [
        "Requeued 0 runs.",
        "Failed 0 runs.",
        "Enqueued 0 runs.",
        "Expired 0 approvals.",
    ]
