"""The command that recovers orphaned runs: runs whose worker died."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from agentic_django.engine import recovery, retries
from agentic_django.engine.recovery import SweepResult


class Command(BaseCommand):
    """``agentic_django_recover_runs``. It is safe while workers run, on several machines."""

    help = (
        "Requeues (or fails) running runs whose lease has expired, and enqueues pending runs that "
        "the queue has lost. Runs of live workers are left alone, unless --force is given."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options."""
        parser.add_argument(
            "--mode",
            choices=("requeue", "fail"),
            default="requeue",
            help=(
                "requeue (default): continue after the recorded calls; "
                "fail: end them, so that a person can retry them."
            ),
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="Also recover runs whose lease has not expired. Use it only while no worker runs.",
        )
        parser.add_argument("--dry-run", action="store_true", help="Only count; change nothing.")

    def handle(self, *, mode: str, force: bool, dry_run: bool, **_: Any) -> None:
        """Recover the runs, and print a line for each count."""
        if dry_run:
            fails = [
                mode == "fail"
                or retries.fails_when_orphaned(each.run, lost_with_others=each.lost_with_others)
                for each in recovery.orphaned_runs(force=force, whole=True)
            ]
            enqueued = len(list(recovery.unqueued_runs(whole=True)))
            swept = SweepResult(
                requeued=fails.count(False), failed=fails.count(True), enqueued=enqueued
            )
        else:
            swept = recovery.sweep(mode, force=force, whole=True)
        for verb, count in asdict(swept).items():
            noun = "approval" if verb == "expired" else "run"
            runs = f"1 {noun}" if count == 1 else f"{count} {noun}s"
            self.stdout.write(
                f"Would have {verb} {runs}." if dry_run else f"{verb.title()} {runs}."
            )
