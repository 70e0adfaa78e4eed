"""Where the processor time of a run goes: ``python -m benchmarks.profile_run [--agent tool]``.

Runs are executed at once in this process, on PostgreSQL. Every millisecond of processor time the
stacks of its threads are looked at. Printed as JSON: milliseconds of a run within each part,
which may lie within one another, and the functions that were at work themselves most often.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from benchmarks import site

_PARTS = {
    "submit": ("services.py", "submit_agent_run"),
    "claim": ("claims.py", "claim"),
    "journal": ("journal.py", "write"),
    "complete": ("lifecycle.py", "complete"),
    "read history": ("sessions.py", "read"),
    "statements: on their way": ("utils.py", "_execute"),
    "statements: made by the ORM": ("compiler.py", "as_sql"),
    "signals": ("signals.py", "announce"),
    "model's fingerprint": ("transcript.py", "fingerprint"),
    "model's response to JSON": ("transcript.py", "dump_response"),
    "events of a response": ("transcript.py", "response_drafts"),
    "values to JSON": ("serialization.py", "to_jsonable"),
    "the SDK's runner": ("run_loop.py", "start_streaming"),
    "deep copies": ("copy.py", "deepcopy"),
}
_IDLE = {"select", "get", "serve", "wait", "acquire", "_worker", "_beat", "_run"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", default="plain")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--database", default="postgres", choices=("postgres", "sqlite"))
    asked = parser.parse_args()
    with site.database(asked.database) as database:
        user = site.up(database)
        _submit(user, asked.agent, 10)
        samples = Samples()
        began = time.process_time()
        samples.take(lambda: _submit(user, asked.agent, asked.runs))
        spent = (time.process_time() - began) * 1000 / asked.runs
    print(json.dumps(samples.told(spent), indent=2))


def _submit(user: Any, agent: str, runs: int) -> None:
    from agentic_django.services import submit_agent_run

    for _ in range(runs):
        submit_agent_run(owner=user, input_payload="Hello", agent_key=agent)


class Samples:
    """Which functions were on the stack of the thread that was at work."""

    def __init__(self) -> None:
        self.count = 0
        self.parts: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()

    def take(self, work: Callable[[], None]) -> None:
        """Sample while something is done."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
        work()
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _sample(self, _: int, here: FrameType | None) -> None:
        self.count += 1
        others = [f for f in sys._current_frames().values() if f.f_code.co_name != "_sample"]
        working = [frame for frame in (here, *others) if frame and not _is_idle(frame)]
        if not working:
            return
        stack = [(f.f_code.co_filename.rpartition("/")[2], f.f_code.co_name) for f in _up(working)]
        self.functions[f"{stack[0][0]}:{stack[0][1]}"] += 1
        self.parts.update(name for name, part in _PARTS.items() if part in stack)

    def told(self, milliseconds: float) -> dict[str, Any]:
        """Return what was seen, as milliseconds of a run."""
        each = milliseconds / max(1, self.count)
        return {
            "all": round(milliseconds, 2),
            "within": {name: round(n * each, 2) for name, n in self.parts.most_common()},
            "at work": {name: round(n * each, 2) for name, n in self.functions.most_common(25)},
        }


def _is_idle(frame: FrameType) -> bool:
    return frame.f_code.co_name in _IDLE


def _up(working: list[FrameType]) -> Iterator[FrameType]:
    frame: FrameType | None = working[0]
    while frame is not None:
        yield frame
        frame = frame.f_back


if __name__ == "__main__":
    main()
