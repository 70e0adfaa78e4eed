"""Performs steps within a run, each once, and tells of it."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from agentic_django.concurrency import event_loop
from agentic_django.engine import events
from agentic_django.engine.events import Event, EventType
from agentic_django.engine.journal import CallResult
from agentic_django.exceptions import (
    BadSetting,
    NotSerializable,
    PipelineChanged,
    RunSuspended,
    StepCancelledError,
    StepError,
    StepExecutionError,
    StepTimeoutError,
)
from agentic_django.models import AgentRun, StepCheckpoint
from agentic_django.models.run_display import since_last_restart
from agentic_django.openai_agents import errors
from agentic_django.openai_agents.call_scope import current_call
from agentic_django.runtime import RunContext
from agentic_django.runtime.context import call_function, check_step_name
from agentic_django.serialization import printable, to_jsonable
from agentic_django.steps.definitions import Step, Steps, check_names, flat, group_of
from agentic_django.steps.state import CHECKPOINT_KEY, merged

__all__ = ["StepExecutor"]

_LONGEST_KEY = 100


class StepExecutor:
    """Performs steps within a run, each once.

    - ``checkpoint_key``: tells several executors of one run apart, at most 100 characters. One
      within a step needs a key of its own.
    - ``cancel_check_interval``: seconds between looks at whether the run was cancelled while
      an executor waits for a step or for its next attempt.
    """

    def __init__(
        self,
        ctx: RunContext,
        checkpoint_key: str = CHECKPOINT_KEY,
        cancel_check_interval: float = 0.5,
    ) -> None:
        if "/" in checkpoint_key:
            raise BadSetting(f"The checkpoint key {checkpoint_key!r} must not have a slash.")
        check_step_name(checkpoint_key)
        if len(checkpoint_key) > _LONGEST_KEY:
            raise BadSetting(f"The checkpoint key {checkpoint_key[:40]!r}… is too long.")
        outer = current_call()
        if outer and outer.key.startswith(f"{checkpoint_key}/"):
            raise BadSetting(
                f"This executor is within a step of another one with the key {checkpoint_key!r}. "
                "Give it a checkpoint_key of its own."
            )
        self.ctx = ctx
        self.checkpoint_key = checkpoint_key
        self.cancel_check_interval = cancel_check_interval
        self.results: dict[str, Any] = {}
        self.state: dict[str, Any] = {}
        self._names: list[str] = []
        self._done: set[str] = set()
        self._shown = 0
        self._version = ""
        self._is_again = False
        self._replaced: dict[str, StepCheckpoint] = {}

    async def run(
        self,
        steps: Steps,
        initial_state: dict[str, Any] | None = None,
        resume: bool = True,
        version: str = "",
    ) -> dict[str, Any]:
        """Perform the steps that are not recorded yet, and return all results by name.

        With ``resume=False`` everything is done again, in place of what an earlier attempt
        recorded. Raises StepExecutionError, StepCancelledError, PipelineChanged (see
        ``Pipeline``; also if a step that is done was renamed, removed or moved, or if others
        were put before it) and BadSetting for a name used twice. Steps that are not done yet
        may be added, renamed and reordered.
        """
        check_names(steps)
        self._names = [step.name for step in flat(steps)]
        self._version = version
        self.state = to_jsonable(copy.deepcopy(initial_state or {}), "initial_state")
        recorded = self._recorded()
        if resume:
            self._refuse_changes([group_of(part) for part in steps], recorded)
        else:
            self._is_again = self.ctx.run.attempt > 1 or bool(recorded)
            self._replaced, recorded = recorded, {}
        if self.ctx.run.attempt > 1:
            self._shown = await event_loop.run_sync(_shown_before, self.ctx.run, self._names)
        for part in steps:
            await self._perform_group(group_of(part), recorded)
        await self._tell_the_end(flat(steps))
        return self.results

    async def _tell_the_end(self, steps: Sequence[Step]) -> None:
        """Say that all is done where no step did, for those that were left were removed."""
        if steps and self._shown < 100 and self._done.issuperset(self._names):
            await self.ctx.write([self._progress(steps[-1])])

    def _key(self, step: str) -> str:
        return f"{self.checkpoint_key}/{step}"

    def _recorded(self) -> dict[str, StepCheckpoint]:
        return {row.name: row for row in self.ctx.journal.find_by_prefix(f"{self.checkpoint_key}/")}

    def _refuse_changes(
        self, groups: Sequence[Sequence[Step]], recorded: dict[str, StepCheckpoint]
    ) -> None:
        """Raise PipelineChanged unless what is recorded is how these steps would have begun."""
        others = [row.fingerprint for row in recorded.values() if row.fingerprint != self._version]
        if others:
            raise PipelineChanged(
                f"This run was begun with version {others[0]!r} of the steps, and they are "
                f"version {self._version!r} now. Start the run again."
            )
        place = {step.name: n for n, group in enumerate(groups) for step in group}
        gone = [name for name in recorded if name not in place]
        if gone:
            raise PipelineChanged(
                f"Step {gone[0]!r} is done and is not among the steps any more. Keep its name, "
                "or start the run again."
            )
        order = [place[name] for name in recorded]
        before = [step for group in groups[: max(order, default=0)] for step in group]
        new = [step.name for step in before if step.checkpoint and step.name not in recorded]
        if new or order != sorted(order):
            raise PipelineChanged(
                f"Steps {', '.join(recorded)} are done, in this order; now they stand in another "
                "one, or others before them. Put new steps behind those that are done, or start "
                "the run again."
            )

    async def _perform_group(
        self, group: Sequence[Step], recorded: dict[str, StepCheckpoint]
    ) -> None:
        await self._skip([step for step in group if step.name in recorded])
        missing = [step for step in group if step.name not in recorded]
        together = self._names.index(group[0].name) if len(group) > 1 else None
        made = await _all([self._perform(step, together) for step in missing])
        values = {name: row.result for name, row in recorded.items()}
        values |= {step.name: value for step, value in zip(missing, made, strict=True)}
        self.results |= {step.name: values[step.name]["result"] for step in group}
        self.state = merged([values[step.name] for step in group], self.state)

    async def _skip(self, steps: Sequence[Step]) -> None:
        self._done |= {step.name for step in steps}
        reason = "already_completed"
        await self.ctx.write([self._told(EventType.STEP_SKIPPED, s, reason=reason) for s in steps])

    async def _perform(self, step: Step, together: int | None) -> dict[str, Any]:
        """Perform a step; what is recorded of it says with which others it is done at once."""
        for attempt in range(1, step.retries + 2):
            self._check_cancelled()
            await self._start(step, attempt)
            began, draft = time.monotonic(), copy.deepcopy(self.state)
            try:
                value = await self._attempt(step, attempt, draft)
            except (StepCancelledError, asyncio.CancelledError):
                raise
            except Exception as error:  # noqa: BLE001 - a step may fail in any way, and be retried
                await self._failed(step, attempt, error)
            else:
                value |= {} if together is None else {"together": together, **self._changes(value)}
                await self._record(step, value, time.monotonic() - began)
                return value
        raise AssertionError("The last attempt returns or raises.")

    def _changes(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return which parts of the state a step of a group has changed, and removed."""
        before, after = self.state, value["state"]
        changed = [k for k, v in after.items() if k not in before or before[k] != v]
        return {"changed": changed, "gone": [k for k in before if k not in after]}

    async def _start(self, step: Step, attempt: int) -> None:
        if step.checkpoint and attempt == 1:
            self.ctx.journal.before_call(self._key(step.name))
        told = self._told(
            EventType.STEP_STARTED,
            step,
            attempt=attempt,
            max_attempts=step.retries + 1,
            description=step.description,
        )
        activity = printable(str(step.description or step.name))[:255]
        await self.ctx.write([told], activity=activity)

    async def _attempt(self, step: Step, attempt: int, state: dict[str, Any]) -> dict[str, Any]:
        limit, key = asyncio.timeout(step.timeout), self._key(step.name)
        if self._is_again:  # Then what the step itself calls is done again, too.
            key = f"{key}@{self.ctx.run.attempt}"
        try:
            async with limit, self.ctx.inside(step.name, key):
                result = await self._watched(call_function(step.fn, self.ctx, state))
        except TimeoutError:
            if limit.expired() and step.timeout is not None:
                raise StepTimeoutError(step.name, attempt, step.timeout) from None
            raise
        kept = to_jsonable(state, f"state after {step.name!r}")
        value = to_jsonable(result, f"result of {step.name!r}")
        return {"result": value, "state": kept, "index": self._names.index(step.name)}

    async def _watched(self, work: Any) -> Any:
        """Wait for a step, and look now and then whether the run was cancelled.

        Work that is given up has ended before this returns.
        """
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self.cancel_check_interval)
                self._check_cancelled()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            raise StepError("The step's own work was cancelled.")
        return task.result()

    def _check_cancelled(self) -> None:
        if self.ctx.cancelled():
            raise StepCancelledError

    async def _failed(self, step: Step, attempt: int, error: Exception) -> None:
        """Tell of a failure, and wait for the next attempt; raise if that was the last one."""
        self.ctx.journal.raise_end()  # An error of the journal is not the step's: no retry.
        said = errors.user_message(error)
        if attempt > step.retries or isinstance(error, NotSerializable):
            await self.ctx.write(
                [self._told(EventType.STEP_FAILED, step, attempts=attempt, **said)]
            )
            if isinstance(error, StepTimeoutError) and error.step == step.name:
                raise error
            raise StepExecutionError(step.name, attempt) from error
        delay = step.retry_delay * 2 ** (attempt - 1)
        told = self._told(
            EventType.STEP_RETRYING,
            step,
            attempt=attempt + 1,
            max_attempts=step.retries + 1,
            retry_delay=delay,
            **said,
        )
        kind = type(error).__name__
        detail = events.new_event(EventType.ERROR, error=f"{kind}: {error}", type=kind)
        await self.ctx.write([told, detail])
        await self._watched(asyncio.sleep(delay))

    async def _record(self, step: Step, value: dict[str, Any], seconds: float) -> None:
        told = [
            self._told(
                EventType.STEP_COMPLETED,
                step,
                result=value["result"],
                duration_seconds=round(seconds, 3),
            ),
            self._progress(step),
        ]
        if not step.checkpoint:
            await self.ctx.write(told)
            return
        result = CallResult(
            key=self._key(step.name),
            kind=StepCheckpoint.Kind.STEP,
            name=step.name,
            value=value,
            seconds=seconds,
            fingerprint=self._version,
        )
        await self.ctx.journal.record(result, told, self._replaced.get(step.name))

    def _told(self, kind: EventType, step: Step, **payload: Any) -> Event:
        index = self._names.index(step.name)
        return events.new_event(
            kind, step_name=step.name, step_index=index, total_steps=len(self._names), **payload
        )

    def _progress(self, step: Step) -> Event:
        self._done.add(step.name)
        percent = round(100 * len(self._done) / len(self._names))
        self._shown = max(self._shown, percent)
        return self._told(
            EventType.PROGRESS_UPDATE,
            step,
            progress_percent=self._shown,
            description=step.description or step.name,
        )


def _shown_before(run: AgentRun, names: Sequence[str]) -> int:
    """Return the progress that an attempt before this one showed for these steps."""
    kinds = (EventType.PROGRESS_UPDATE, EventType.RUN_RETRYING)
    told = run.events.filter(event_type__in=kinds).order_by("sequence")
    payloads = [p for _, p in since_last_restart(list(told.values_list("event_type", "payload")))]
    shown = [p.get("progress_percent") for p in payloads if p.get("step_name") in names]
    return max((n for n in shown if isinstance(n, int)), default=0)  # A host may tell others.


async def _all(works: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return all results; if one fails, the others are cancelled, and have ended, first."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    except RunSuspended:  # What others are at is not lost, and may ask something too.
        await asyncio.wait(tasks)
        ends = [task.exception() for task in tasks if not task.cancelled()]
        raise (
            next((end for end in ends if isinstance(end, Exception)), None) or RunSuspended
        ) from None
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
