"""The command that deletes rows as the retention policy says."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from pydantic import ValidationError

from agentic_django.conf import PREFIX, CleanupPolicy, Settings, settings
from agentic_django.engine import cleanup


class Command(BaseCommand):
    """``agentic_django_cleanup``. It is safe while workers run: it keeps unfinished runs."""

    help = (
        "Deletes old events, finished runs and empty sessions, as "
        f"{PREFIX}CLEANUP_POLICY says. Rows without a number of days are kept."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options, each of which replaces an entry of the policy."""
        parser.add_argument("--dry-run", action="store_true", help="Only print the counts.")
        parser.add_argument(
            "--events-days", help="Delete events of runs that ended this number of days ago."
        )
        parser.add_argument("--runs-days", help="Delete runs that ended this number of days ago.")
        parser.add_argument(
            "--sessions-days", help="Delete sessions that were last used this number of days ago."
        )
        parser.add_argument("--batch-size", help="The number of rows that one transaction deletes.")

    def handle(self, *, dry_run: bool, **options: Any) -> None:
        """Delete rows, and print the count of each kind."""
        if problem := Settings.options()[f"{PREFIX}CLEANUP_POLICY"].problem():
            raise CommandError(f"{PREFIX}CLEANUP_POLICY is invalid: {problem}.")
        names = ("events_days", "runs_days", "sessions_days", "batch_size")
        given = {name: options[name] for name in names if options[name] is not None}
        try:
            policy = CleanupPolicy.model_validate({**settings.CLEANUP_POLICY, **given})
        except ValidationError as error:
            sentences = []
            for detail in error.errors():
                option = f"--{str(detail['loc'][0]).replace('_', '-')}"
                sentences.append(
                    f"{option}={detail['input']}: {detail['msg']}. "
                    f"Give a number, for example {option}=30."
                )
            raise CommandError(" ".join(sentences)) from None
        deleted = cleanup.delete_old(policy, dry_run=dry_run)
        verb = "Would delete" if dry_run else "Deleted"
        for kind, count in asdict(deleted).items():
            self.stdout.write(f"{verb} {kind.replace('_', ' ')}: {count}")
