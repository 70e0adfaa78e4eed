"""What a recorded sub-step costs in a run of very many, and how soon such a run is resumed.

``python -m benchmarks.sub_steps [--steps 10000] [--database sqlite|postgres]`` prints JSON. One
run records so many results by ``ctx.step``, and fails; it is then retried, finds all of them
recorded, and completes. Time and SQL statements are given for a step of the first tenth and of
the last one; statements that only open or close a transaction do not count. Where the machine has
other work, the processor time of this process says more than the time on the clock.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from typing import Any

from benchmarks import site

_FRAMES = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
_PARTS = 10


class Meter:
    """Counts statements, and notes the time and the count at each tenth of the steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.statements = 0
        self.performed = 0
        self.marks: list[tuple[float, float, int]] = []

    def count(self, execute: Any, sql: str, *rest: Any) -> Any:
        """Count a statement and execute it."""
        self.statements += not sql.startswith(_FRAMES)
        return execute(sql, *rest)

    async def step(self, n: int) -> dict[str, Any]:
        """Do the work of a step: next to nothing."""
        self.performed += 1
        return {"n": n, "vector": [0.25, 0.5, 0.75]}

    async def run(self, ctx: Any) -> str:
        """Perform all steps; fail at the end if they were not all recorded before."""
        for n in range(self.steps):
            if n % (self.steps // _PARTS) == 0:
                self.mark()
            await ctx.step(f"embed:{n}", self.step, n)
        self.mark()
        if ctx.run.attempt == 1:
            raise RuntimeError("The first attempt ends here.")
        return "Done."

    def mark(self) -> None:
        """Note the times and the count."""
        self.marks.append((time.perf_counter(), time.process_time(), self.statements))

    def part(self, number: int) -> dict[str, float]:
        """Return what one step cost in a tenth of them."""
        before, after = self.marks[number : number + 2]
        spent = [(b - a) / (self.steps // _PARTS) for a, b in zip(before, after, strict=True)]
        return {
            "ms_per_step": round(spent[0] * 1000, 4),
            "cpu_ms_per_step": round(spent[1] * 1000, 4),
            "statements_per_step": spent[2],
        }


meter: Meter


def agents() -> dict[str, Any]:
    """The registry of this site."""

    async def sub_steps(ctx: Any) -> str:
        return await meter.run(ctx)

    return {"sub_steps": sub_steps}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    asked = parser.parse_args()
    logging.disable()  # Of the failure that is meant to be.
    with site.database(asked.database) as database:
        user = site.up(database, registry=f"{__name__}.agents")
        print(json.dumps(_measured(user, asked.steps), indent=2))


def _measured(user: Any, steps: int) -> dict[str, Any]:
    from django.db import connection

    global meter
    meter = Meter(steps)
    with connection.execute_wrapper(meter.count):
        run = _submitted(user)
        first, last = meter.part(0), meter.part(_PARTS - 1)
        began, before = time.perf_counter(), meter.statements
        _retried(run)
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


def _submitted(user: Any) -> Any:
    from agentic_django.services import submit_agent_run

    run = submit_agent_run(owner=user, input_payload="Embed.", agent_key="sub_steps")
    run.refresh_from_db()
    assert run.status == "failed", run.status
    return run


def _retried(run: Any) -> None:
    from agentic_django.services import retry_agent_run

    retry_agent_run(run)
    run.refresh_from_db()
    assert run.status == "completed", run.error_detail


if __name__ == "__main__":
    main()
