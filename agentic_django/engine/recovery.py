"""Recovers orphaned runs, enqueues runs that the queue lost, and expires approvals.

Any process may sweep, because each change is guarded. A process that enqueues or displays runs
has a thread that sweeps while unfinished runs exist. Each attempt sweeps at its end. A row of
``SweepMark`` keeps processes from sweeping at the same time. If the task backend executes
immediately, the process has no sweeping thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from itertools import batched

from django.db import Error, connections, transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils.module_loading import import_string

from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.process_state import process
from agentic_django.conf import settings
from agentic_django.engine import approval_requests, approvals, dispatch, lifecycle, queues
from agentic_django.engine.run_rows import run_rows
from agentic_django.exceptions import Conflict
from agentic_django.models import AgentRun, SweepMark, database
from agentic_django.models.choices import Status
from agentic_django.models.querysets import RunQuerySet, lease_expired
from agentic_django.signals import logger

__all__ = [
    "SweepResult",
    "ensure_sweeping",
    "start_sweeper",
    "sweep",
    "sweep_after_attempt",
    "sweep_if_due",
    "sweep_interval",
]

_GONE: tuple[type[Exception], ...] = (TaskResultDoesNotExist,)
if find_spec("django_tasks"):  # The older package has its own exception.
    _GONE += (import_string("django_tasks.exceptions.TaskResultDoesNotExist"),)

_LONGEST_PAUSE = 5.0
_BATCH = 500


@dataclass(slots=True)
class SweepResult:
    """The numbers of runs that a sweep requeued, failed and enqueued again.

    ``expired`` is the number of approvals that nobody decided in time.
    """

    requeued: int = 0
    failed: int = 0
    enqueued: int = 0
    expired: int = 0


def sweep_interval() -> float:
    """Return the seconds between sweeps: a third of a lease, at most 5."""
    return min(settings.LEASE_SECONDS / 3, _LONGEST_PAUSE)


def sweep(mode: str | None = None, *, force: bool = False, whole: bool = False) -> SweepResult:
    """Requeue or fail orphaned runs, enqueue runs that the queue lost, and expire approvals.

    ``mode`` is "requeue", "fail" or "ignore"; the default is the setting ``STARTUP_RECOVERY``.
    ``force`` includes runs whose lease has not expired. Use it only if all workers are dead. A
    sweep handles one batch of each kind, so that it is short. ``whole`` handles all rows.
    """
    mode = mode or settings.STARTUP_RECOVERY
    swept = SweepResult()
    if mode != "ignore":
        for orphan in orphaned_runs(force=force, whole=whole):
            run, same_attempt = orphan.run, Q(attempt=orphan.run.attempt)
            with _apart(run), suppress(Conflict):
                done = lifecycle.recover(
                    run,
                    same_attempt if force else same_attempt & lease_expired(),
                    may_requeue=mode != "fail",
                    lost_with_others=orphan.lost_with_others,
                )
                swept.requeued += done == "requeue"
                swept.failed += done == "fail"
    for approval in approval_requests.approval_rows().overdue().select_related("run")[:_BATCH]:
        with _apart(approval.run), suppress(Conflict):
            approvals.expire(approval)
            swept.expired += 1
    for run in unqueued_runs(whole=whole):
        with _apart(run), transaction.atomic(using=database()):
            if dispatch.mark_enqueued(run):
                dispatch.enqueue_on_commit(run)
                swept.enqueued += 1
    return swept


@dataclass(frozen=True, slots=True)
class Orphan:
    """A running run whose worker died."""

    run: AgentRun
    lost_with_others: bool
    """Whether the worker died with several runs."""


def orphaned_runs(*, force: bool = False, whole: bool = False) -> Iterator[Orphan]:
    """Yield the running runs whose lease has expired. With ``force``, yield all running runs."""
    rows = run_rows().running() if force else run_rows().orphaned()
    others = rows.filter(holder=OuterRef("holder")).exclude(pk=OuterRef("pk"))
    rows = rows.annotate(lost_with_others=Exists(others)).order_by("lease_ends_at")
    for run in _of(rows.select_related("session", "owner"), whole=whole):
        yield Orphan(run, vars(run)["lost_with_others"])


def _of(found: RunQuerySet, *, whole: bool) -> Iterator[AgentRun]:
    """Yield the first batch of rows. With ``whole``, yield all rows, in batches."""
    if not whole:
        yield from found[:_BATCH]
        return
    for keys in batched(list(found.values_list("pk", flat=True)), _BATCH, strict=False):
        yield from found.filter(pk__in=keys)


@contextmanager
def _apart(run: AgentRun) -> Iterator[None]:
    """Log an error of one run, so that the sweep continues with the other runs."""
    try:
        yield
    except Error:
        raise
    except Exception as error:  # noqa: BLE001 - a host's value in the row, or the queue's answer
        logger.warning("Run %s cannot be recovered now: %r", run.pk, error)


def unqueued_runs(*, whole: bool = False) -> Iterator[AgentRun]:
    """Yield the due runs that were never enqueued, or that the queue has lost."""
    if queues.delivery() is queues.Delivery.ROWS:
        return
    patience = Now() - timedelta(seconds=sweep_interval())
    old = Q(enqueued_at__isnull=True, updated_at__lt=patience) | Q(enqueued_at__lt=patience)
    due = run_rows().due().filter(old | Q(enqueued_at__isnull=True, attempt__gt=0))
    first = F("enqueued_at").asc(nulls_first=True)
    for run in _of(due.order_by(first), whole=whole):
        is_queued = True
        with _apart(run):
            is_queued = _is_queued(run)
        if not is_queued:
            yield run


def _is_queued(run: AgentRun) -> bool:
    """Whether the queue still has the run's task.

    If the queue cannot answer, the task counts as queued for a minute. If the task is running
    while its run is pending, the worker has not claimed the run yet, or it died before it could.
    Then the task counts as queued for the duration of a lease.
    """
    backend = queues.backend()
    if not run.task_id or run.enqueued_at is None:
        return False
    if not backend.supports_get_result:
        return _was_sent_within(run, 60)
    try:
        task = backend.get_result(run.task_id)
    except _GONE:
        return False
    if task.status == "RUNNING":
        return _was_sent_within(run, settings.LEASE_SECONDS)
    return not task.is_finished


def _was_sent_within(run: AgentRun, seconds: float) -> bool:
    since = Now() - timedelta(seconds=seconds)
    return run_rows().filter(pk=run.pk, enqueued_at__gt=since).exists()


def sweep_after_attempt() -> None:
    """Sweep at the end of an attempt, if no process has swept recently."""
    if not queues.executes_immediately():
        sweep_if_due()


def sweep_if_due() -> None:
    """Sweep if no process has swept recently. Log errors, and leave the rest to the next sweep."""
    try:
        marks = SweepMark.objects.using(database())
        old = marks.filter(pk=1, swept_at__lt=Now() - timedelta(seconds=sweep_interval()))
        is_due = bool(old.update(swept_at=Now()))
        if not is_due and not marks.filter(pk=1).exists():  # No process has ever swept.
            marks.bulk_create([SweepMark(pk=1)], ignore_conflicts=True)
            is_due = True
        if is_due:
            sweep()
    except Exception as error:  # noqa: BLE001 - the queue or the database is away; asked again
        logger.warning("Sweep failed: %r", error)


class Sweeper(BackgroundThread):
    """Sweeps while unfinished runs exist, or open approvals that can expire."""

    name = "agentic-sweeper"

    def __init__(self) -> None:
        super().__init__()
        self.has_swept = False
        """Whether ``ensure_sweeping`` has swept once; used where there is no thread."""

    def _run(self) -> None:
        while True:
            try:
                sweep_if_due()
                unfinished = run_rows().filter(status__in=(Status.PENDING, Status.RUNNING))
                expiring = approval_requests.approval_rows().open().exclude(expires_at=None)
                if not unfinished.exists() and not expiring.exists():
                    return
            except Exception as error:  # noqa: BLE001 - orphaned runs need the next sweep
                logger.warning("Cannot check for unfinished runs: %r", error)
            finally:
                connections.close_all()
            if not self._pause(sweep_interval()):
                return


def start_sweeper() -> None:
    """Start the sweeping thread, in a process that enqueues or displays runs.

    Do nothing if the task backend executes immediately.
    """
    if not queues.executes_immediately():
        process.get(Sweeper).start()


def ensure_sweeping() -> None:
    """Start the sweeping thread. A process without one sweeps on the first call."""
    if not queues.executes_immediately():
        start_sweeper()
    elif not process.get(Sweeper).has_swept:
        process.get(Sweeper).has_swept = True
        sweep()
