"""Delete what the retention policy does not keep."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from pydantic import ValidationError

from agentic_django.conf import PREFIX, CleanupPolicy, Settings, settings
from agentic_django.engine import cleanup


class Command(BaseCommand):
    """``agentic_django_cleanup``: safe while runs are worked on; it never deletes those."""

    help = (
        "Deletes old events, finished runs and empty sessions, as "
        f"{PREFIX}CLEANUP_POLICY says; what has no number of days is kept for ever."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Each option stands for the policy's entry of the same name."""
        parser.add_argument("--dry-run", action="store_true", help="Only count; delete nothing.")
        parser.add_argument("--events-days", help="Delete events of runs that ended so long ago.")
        parser.add_argument("--runs-days", help="Delete runs that ended so long ago.")
        parser.add_argument("--sessions-days", help="Delete sessions not used for so long.")
        parser.add_argument("--batch-size", help="How many rows one transaction deletes.")

    def handle(self, *, dry_run: bool, **options: Any) -> None:
        """Delete, and write how many rows of each kind."""
        deleted = cleanup.delete_old(_policy(options), dry_run=dry_run)
        verb = "Would delete" if dry_run else "Deleted"
        for kind, count in asdict(deleted).items():
            self.stdout.write(f"{verb} {kind.replace('_', ' ')}: {count}")


def _policy(options: dict[str, Any]) -> CleanupPolicy:
    if problem := Settings.options()[f"{PREFIX}CLEANUP_POLICY"].problem():
        raise CommandError(f"{PREFIX}CLEANUP_POLICY cannot be used: {problem}.")
    names = ("events_days", "runs_days", "sessions_days", "batch_size")
    given = {name: options[name] for name in names if options[name] is not None}
    try:
        return CleanupPolicy.model_validate({**settings.CLEANUP_POLICY, **given})
    except ValidationError as error:
        raise CommandError(" ".join(map(_sentence, error.errors()))) from None


def _sentence(detail: Any) -> str:
    option = f"--{str(detail['loc'][0]).replace('_', '-')}"
    return f"{option}={detail['input']}: {detail['msg']}; give a number, for example {option}=30."
