"""Requeue or fail the runs whose worker is gone."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from agentic_django.engine import recovery, retries
from agentic_django.engine.recovery import SweepResult


class Command(BaseCommand):
    """``agentic_django_recover_runs``: safe while workers run, and at any number of places."""

    help = (
        "Requeues (or fails) running runs whose lease has ended, and sends again the pending runs "
        "that the queue has lost. Runs whose worker lives are left alone, unless --force is given."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """What becomes of the runs that are found."""
        parser.add_argument(
            "--mode",
            choices=("requeue", "fail"),
            default="requeue",
            help=(
                "requeue (default): continue from what was recorded; "
                "fail: end them, for a person to retry."
            ),
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="Take running runs even if their lease is alive: only once no worker runs.",
        )
        parser.add_argument("--dry-run", action="store_true", help="Only count; change nothing.")

    def handle(self, *, mode: str, force: bool, dry_run: bool, **_: Any) -> None:
        """Recover, and write one line for each count."""
        recover = _foretell if dry_run else partial(recovery.sweep, whole=True)
        swept = recover(mode, force=force)
        for verb, count in asdict(swept).items():
            noun = "approval" if verb == "expired" else "run"
            runs = f"1 {noun}" if count == 1 else f"{count} {noun}s"
            self.stdout.write(
                f"Would have {verb} {runs}." if dry_run else f"{verb.title()} {runs}."
            )


def _foretell(mode: str, *, force: bool) -> SweepResult:
    fails = [
        mode == "fail"
        or retries.fails_when_orphaned(orphan.run, lost_with_others=orphan.lost_with_others)
        for orphan in recovery.orphaned_runs(force=force, whole=True)
    ]
    sent = sum(1 for _ in recovery.unqueued_runs(whole=True))
    return SweepResult(requeued=fails.count(False), failed=fails.count(True), sent=sent)
