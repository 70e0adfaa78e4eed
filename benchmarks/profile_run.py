"""Profiles the processor time of a run: ``python -m benchmarks.profile_run [--agent tool]``.

Runs execute immediately in this process, on PostgreSQL. The stacks of its threads are sampled every
millisecond of processor time. The output is JSON: the milliseconds of a run in each part, which may
contain other parts, and the functions that used the most time themselves.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from benchmarks import command, site

_PARTS = {
    "submit": ("services.py", "submit_agent_run"),
    "claim": ("claims.py", "claim_run"),
    "journal": ("journal_entries.py", "write_entries"),
    "complete": ("lifecycle.py", "complete"),
    "read history": ("session_items.py", "read_items"),
    "statements: in the database": ("utils.py", "_execute"),
    "statements: made by the ORM": ("compiler.py", "as_sql"),
    "signals": ("signals.py", "announce"),
    "model's fingerprint": ("conversion.py", "fingerprint"),
    "model's response to JSON": ("conversion.py", "dump_response"),
    "values to JSON": ("serialization.py", "to_jsonable"),
    "the SDK's runner": ("run_loop.py", "start_streaming"),
    "deep copies": ("copy.py", "deepcopy"),
}
_IDLE = {"select", "get", "serve", "wait", "acquire", "_worker", "_run"}


def main() -> None:
    """Measure and print the result."""
    options = command.parser(__doc__, agent="plain", runs=300, database="postgres").parse_args()
    with site.database(options.database) as database:
        user = site.set_up(database)
        site.submit(user, options.agent, 10)
        samples = Samples()
        began = time.process_time()
        samples.record(lambda: site.submit(user, options.agent, options.runs))
        spent = (time.process_time() - began) * 1000 / options.runs
    print(json.dumps(samples.summary(spent), indent=2))


class Samples:
    """Counts the functions on the stack of the thread that was executing."""

    def __init__(self) -> None:
        self.count = 0
        self.parts: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()

    def record(self, work: Callable[[], object]) -> None:
        """Sample while a function executes."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
        work()
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _sample(self, _: int, here: FrameType | None) -> None:
        self.count += 1
        others = [f for f in sys._current_frames().values() if f.f_code.co_name != "_sample"]
        executing = [
            frame for frame in (here, *others) if frame and frame.f_code.co_name not in _IDLE
        ]
        if not executing:
            return
        stack = [
            (f.f_code.co_filename.rpartition("/")[2], f.f_code.co_name)
            for f in _callers(executing[0])
        ]
        self.functions[f"{stack[0][0]}:{stack[0][1]}"] += 1
        self.parts.update(name for name, part in _PARTS.items() if part in stack)

    def summary(self, milliseconds: float) -> dict[str, Any]:
        """Return the samples as milliseconds of a run."""
        each = milliseconds / max(1, self.count)
        return {
            "all": round(milliseconds, 2),
            "within": {name: round(n * each, 2) for name, n in self.parts.most_common()},
            "at work": {name: round(n * each, 2) for name, n in self.functions.most_common(25)},
        }


def _callers(innermost: FrameType) -> Iterator[FrameType]:
    frame: FrameType | None = innermost
    while frame is not None:
        yield frame
        frame = frame.f_back


if __name__ == "__main__":
    main()
