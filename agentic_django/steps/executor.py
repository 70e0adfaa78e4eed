"""Executes the steps of a pipeline within a run: records each once, retries it, writes its events.

Read ``StepExecutor.run`` first. A group of concurrent steps is a list. A single step is a group of
one.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from agentic_django.concurrency import event_loop
from agentic_django.engine import events
from agentic_django.engine.events import Event, EventType
from agentic_django.engine.journal_entries import CallResult
from agentic_django.exceptions import (
    BadSetting,
    NotSerializable,
    RunSuspended,
    StepCancelledError,
    StepError,
    StepExecutionError,
    StepTimeoutError,
)
from agentic_django.models import StepCheckpoint
from agentic_django.openai_agents import error_classification
from agentic_django.openai_agents.call_scope import current_call
from agentic_django.runtime import RunContext
from agentic_django.runtime.recorded_steps import call_function, check_step_name, enter_step
from agentic_django.serialization import printable, to_jsonable
from agentic_django.steps.definitions import Step, Steps, check_names, flat, group_of
from agentic_django.steps.resuming import check_resumable, shown_progress
from agentic_django.steps.state import CHECKPOINT_KEY, merged

__all__ = ["StepExecutor"]

_LONGEST_KEY = 100


class StepExecutor:
    """Executes steps within a run, and records each once.

    - ``checkpoint_key``: distinguishes several executors of one run, at most 100 characters. An
      executor within a step needs its own key.
    - ``cancel_check_interval``: seconds between checks whether the run was cancelled. They are made
      while a step is executed and while the executor waits before a retry.

    ``results`` are the results by step name, and ``state`` is the state after the last step.
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
        self._version = ""
        self._done: set[str] = set()
        self._percent = 0
        self._is_repeat = False
        self._replaced: Mapping[str, StepCheckpoint] = {}

    async def run(
        self,
        steps: Steps,
        initial_state: dict[str, Any] | None = None,
        resume: bool = True,
        version: str = "",
    ) -> dict[str, Any]:
        """Execute the steps that are not recorded, and return all results by name.

        With ``resume=False``, execute all steps again, and replace what an earlier attempt
        recorded.

        Raises StepExecutionError if a step fails in its last attempt. Raises StepCancelledError if
        the run is cancelled. Raises PipelineChanged if the run was started with another
        ``version``, or if recorded steps were renamed, removed, moved or preceded by new ones.
        Raises BadSetting if two steps have the same name.
        """
        check_names(steps)
        groups, all_steps = [group_of(part) for part in steps], flat(steps)
        self._names = [step.name for step in all_steps]
        self._version = version
        self.state = to_jsonable(copy.deepcopy(initial_state or {}), "initial_state")
        recorded = {
            row.name: row for row in self.ctx.journal.find_by_prefix(f"{self.checkpoint_key}/")
        }
        if resume:
            check_resumable(groups, recorded, version)
        else:
            self._is_repeat = self.ctx.run.attempt > 1 or bool(recorded)
            self._replaced, recorded = recorded, {}
        if self.ctx.run.attempt > 1:
            self._percent = await event_loop.run_sync(shown_progress, self.ctx.run, self._names)
        for group in groups:
            await self._execute_group(group, recorded)
        # If the unfinished steps were removed, no step has shown 100 percent.
        if all_steps and self._percent < 100 and self._done.issuperset(self._names):
            await self.ctx.write([self._progress(all_steps[-1])])
        return self.results

    async def _execute_group(
        self, group: Sequence[Step], recorded: Mapping[str, StepCheckpoint]
    ) -> None:
        """Skip the recorded steps of a group, execute the others, and merge their states."""
        skipped = [step for step in group if step.name in recorded]
        self._done |= {step.name for step in skipped}
        reason = "already_completed"
        await self.ctx.write(
            [self._event(EventType.STEP_SKIPPED, step, reason=reason) for step in skipped]
        )
        remaining = [step for step in group if step.name not in recorded]
        group_index = self._names.index(group[0].name) if len(group) > 1 else None
        new = await _gather([self._execute(step, group_index) for step in remaining])
        values = {name: row.result for name, row in recorded.items()}
        values |= {step.name: value for step, value in zip(remaining, new, strict=True)}
        self.results |= {step.name: values[step.name]["result"] for step in group}
        self.state = merged([values[step.name] for step in group], self.state)

    async def _execute(self, step: Step, group_index: int | None) -> dict[str, Any]:
        """Execute a step, with its retries, and return the value to record.

        ``group_index`` is the index of the first step of its group.
        """
        for attempt in range(1, step.retries + 2):
            self._check_cancelled()
            await self._start(step, attempt)
            started_at = time.monotonic()
            try:
                value = await self._call(step, attempt)
            except (StepCancelledError, asyncio.CancelledError):
                raise
            except Exception as error:  # noqa: BLE001 - a step may fail in any way, and be retried
                await self._handle_failure(step, attempt, error)
            else:
                if group_index is not None:
                    value |= {"together": group_index, **self._changes(value["state"])}
                await self._record(step, value, time.monotonic() - started_at)
                return value
        raise AssertionError("The last attempt returns or raises.")

    async def _start(self, step: Step, attempt: int) -> None:
        if step.checkpoint and attempt == 1:
            self.ctx.journal.before_call(self._key(step))
        started = self._event(
            EventType.STEP_STARTED,
            step,
            attempt=attempt,
            max_attempts=step.retries + 1,
            description=step.description,
        )
        activity = printable(str(step.description or step.name))[:255]
        await self.ctx.write([started], activity=activity)

    async def _call(self, step: Step, attempt: int) -> dict[str, Any]:
        """Call a step's function with a copy of the state. Return its result and the new state."""
        key, state = self._key(step), copy.deepcopy(self.state)
        if self._is_repeat:
            # The calls within the step are then also repeated, not replayed.
            key = f"{key}@{self.ctx.run.attempt}"
        timeout = asyncio.timeout(step.timeout)
        try:
            async with timeout, enter_step(self.ctx.journal, step.name, key):
                result = await self._wait(call_function(step.fn, self.ctx, state))
        except TimeoutError:
            if timeout.expired() and step.timeout is not None:
                raise StepTimeoutError(step.name, attempt, step.timeout) from None
            raise
        return {
            "state": to_jsonable(state, f"state after {step.name!r}"),
            "result": to_jsonable(result, f"result of {step.name!r}"),
            "index": self._names.index(step.name),
        }

    async def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return the result of a coroutine.

        Raises StepCancelledError if the run is cancelled. The coroutine has ended before this
        function returns or raises.
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
        try:
            return task.result()
        except asyncio.CancelledError as error:
            raise StepError("The step's own work was cancelled.") from error

    def _check_cancelled(self) -> None:
        if self.ctx.cancelled():
            raise StepCancelledError

    async def _handle_failure(self, step: Step, attempt: int, error: Exception) -> None:
        """Record a failed attempt of a step. Wait before the next one, or raise after the last.

        A result that is not JSON is not retried.
        """
        self.ctx.journal.raise_end()  # An error of the journal is not retried.
        message = error_classification.user_message(error)
        if attempt > step.retries or isinstance(error, NotSerializable):
            failed = self._event(EventType.STEP_FAILED, step, attempts=attempt, **message)
            await self.ctx.write([failed])
            if isinstance(error, StepTimeoutError) and error.step == step.name:
                raise error
            raise StepExecutionError(step.name, attempt) from error
        delay = step.retry_delay * 2 ** (attempt - 1)
        retrying = self._event(
            EventType.STEP_RETRYING,
            step,
            attempt=attempt + 1,
            max_attempts=step.retries + 1,
            retry_delay=delay,
            **message,
        )
        kind = type(error).__name__
        detail = events.new_event(EventType.ERROR, error=f"{kind}: {error}", type=kind)
        await self.ctx.write([retrying, detail])
        await self._wait(asyncio.sleep(delay))

    def _changes(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the keys of the state that a step of a group has changed or removed."""
        before = self.state
        changed = [k for k, v in state.items() if k not in before or before[k] != v]
        return {"changed": changed, "gone": [k for k in before if k not in state]}

    async def _record(self, step: Step, value: dict[str, Any], seconds: float) -> None:
        """Record a step with its events. For a step without checkpoint, write only the events."""
        completed = self._event(
            EventType.STEP_COMPLETED,
            step,
            result=value["result"],
            duration_seconds=round(seconds, 3),
        )
        new_events = [completed, self._progress(step)]
        if not step.checkpoint:
            await self.ctx.write(new_events)
            return
        result = CallResult(
            key=self._key(step),
            kind=StepCheckpoint.Kind.STEP,
            name=step.name,
            value=value,
            seconds=seconds,
            fingerprint=self._version,
        )
        await self.ctx.journal.record(result, new_events, self._replaced.get(step.name))

    def _key(self, step: Step) -> str:
        return f"{self.checkpoint_key}/{step.name}"

    def _progress(self, step: Step) -> Event:
        """Count a step as done, and return the progress event."""
        self._done.add(step.name)
        self._percent = max(self._percent, round(100 * len(self._done) / len(self._names)))
        return self._event(
            EventType.PROGRESS_UPDATE,
            step,
            progress_percent=self._percent,
            description=step.description or step.name,
        )

    def _event(self, kind: EventType, step: Step, **payload: Any) -> Event:
        index = self._names.index(step.name)
        return events.new_event(
            kind, step_name=step.name, step_index=index, total_steps=len(self._names), **payload
        )


async def _gather(works: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return all results.

    If one coroutine fails, cancel the others, and wait for their end. If one suspends the run, the
    others are not cancelled. Their results are recorded, and they may also ask a person.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    except RunSuspended:
        await asyncio.wait(tasks)
        raised = [task.exception() for task in tasks if not task.cancelled()]
        failures = (error for error in raised if isinstance(error, Exception))
        raise next(failures, None) or RunSuspended from None
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
