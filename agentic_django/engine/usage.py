"""Sums the tokens and the cost of a run's recorded model calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from agentic_django.models import StepCheckpoint

__all__ = ["total_usage"]


def total_usage(rows: Iterable[StepCheckpoint]) -> dict[str, Any]:
    """Return the total usage of recorded model calls, with the cost if all have a price."""
    total: Counter[str] = Counter()
    counts = [row.usage for row in rows if row.usage]
    for usage in counts:
        total.update(usage)
    if not all("cost_usd" in usage for usage in counts):
        total.pop("cost_usd", None)
    return dict(total)
