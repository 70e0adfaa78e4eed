"""Measures a recorded sub-step in a run with many of them, and the time to resume such a run.

``python -m benchmarks.sub_steps [--steps 10000] [--database sqlite|postgres]`` prints JSON. One run
records its results with ``ctx.step`` and fails. It is retried, finds all results recorded, and
completes. The output has the time and SQL statements of a step in the first tenth and in the last.
Statements that only open or close a transaction are not counted. On a busy machine, compare the
processor time of this process instead of the elapsed time.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from benchmarks import command, site

_PARTS = 10


class Meter:
    """Counts statements, and records time and count after each tenth of the steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.statements = 0
        self.performed = 0
        self.marks: list[tuple[float, float, int]] = []

    def count(self, execute: Any, sql: str, *rest: Any) -> Any:
        """Count a statement and execute it."""
        self.statements += not sql.startswith(site.TRANSACTION_STATEMENTS)
        return execute(sql, *rest)

    async def step(self, n: int) -> dict[str, Any]:
        """Return a small result, as the work of a step."""
        self.performed += 1
        return {"n": n, "vector": [0.25, 0.5, 0.75]}

    async def run(self, ctx: Any) -> str:
        """Perform all steps; fail at the end of the first attempt."""
        for n in range(self.steps):
            if n % (self.steps // _PARTS) == 0:
                self.mark()
            await ctx.step(f"embed:{n}", self.step, n)
        self.mark()
        if ctx.run.attempt == 1:
            raise RuntimeError("The first attempt ends here.")
        return "Done."

    def mark(self) -> None:
        """Record the times and the count."""
        self.marks.append((time.perf_counter(), time.process_time(), self.statements))

    def part(self, number: int) -> dict[str, float]:
        """Return the cost of one step in a tenth of them."""
        before, after = self.marks[number : number + 2]
        spent = [(b - a) / (self.steps // _PARTS) for a, b in zip(before, after, strict=True)]
        return {
            "ms_per_step": round(spent[0] * 1000, 4),
            "cpu_ms_per_step": round(spent[1] * 1000, 4),
            "statements_per_step": spent[2],
        }


meter: Meter


def agents() -> dict[str, Any]:
    """Return the factories of the site's agents, by key."""

    async def sub_steps(ctx: Any) -> str:
        return await meter.run(ctx)

    return {"sub_steps": sub_steps}


def main() -> None:
    """Measure and print the result."""
    options = command.parser(__doc__, steps=10_000, database="sqlite").parse_args()
    logging.disable()  # The run fails on purpose.
    with site.database(options.database) as database:
        user = site.set_up(database, registry=f"{__name__}.agents")
        print(json.dumps(_measured(user, options.steps), indent=2))


def _measured(user: Any, steps: int) -> dict[str, Any]:
    from django.db import connection

    from agentic_django.services import retry_agent_run

    global meter
    meter = Meter(steps)
    with connection.execute_wrapper(meter.count):
        run = site.submit(user, "sub_steps")
        _assert_status(run, "failed")
        first, last = meter.part(0), meter.part(_PARTS - 1)
        began, before = time.perf_counter(), meter.statements
        retry_agent_run(run)
        _assert_status(run, "completed")
        resumed = time.perf_counter() - began
    assert meter.performed == steps, meter.performed
    return {
        "steps": steps,
        "database": connection.vendor,
        "first": first,
        "last": last,
        "ratio": round(last["ms_per_step"] / first["ms_per_step"], 3),
        "cpu_ratio": round(last["cpu_ms_per_step"] / first["cpu_ms_per_step"], 3),
        "resume_seconds": round(resumed, 3),
        "resume_statements": meter.statements - before,
    }


def _assert_status(run: Any, status: str) -> None:
    run.refresh_from_db()
    assert run.status == status, run.error_detail


if __name__ == "__main__":
    main()
