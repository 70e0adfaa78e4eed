"""The classes with which a host defines a pipeline: Step, Parallel and Pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from django.utils.functional import Promise

from agentic_django.exceptions import BadSetting
from agentic_django.runtime.recorded_steps import check_step_name

__all__ = ["Parallel", "Pipeline", "Step", "Steps", "check_names", "flat", "group_of"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: ``fn(ctx, state)`` returns a JSON value, and may change ``state``.

    - ``retries``: the number of retries after a failure.
    - ``retry_delay``: seconds before the first retry. It doubles before each further one.
    - ``timeout``: seconds that one attempt of the step may take.
    - ``description``: a description of the step for users.
    - ``checkpoint``: False for a step that is executed again each time the run is resumed.

    Raises BadSetting if a value is invalid.
    """

    name: str
    fn: Callable[..., Any]
    retries: int = 0
    retry_delay: float = 1.0
    timeout: float | None = None
    description: str | None = None
    checkpoint: bool = True

    def __post_init__(self) -> None:
        check_step_name(self.name)
        retries: Any = self.retries
        if not callable(self.fn):
            raise BadSetting(f"Step {self.name!r}: fn must be a function, not {self.fn!r:.60}.")
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise BadSetting(
                f"Step {self.name!r}: retries must be an integer of at least 0, not {retries!r}."
            )
        self._check_seconds("retry_delay", 0)
        if self.timeout is not None:
            self._check_seconds("timeout", 1e-9)
        if not isinstance(self.description, str | Promise | None):
            raise BadSetting(
                f"Step {self.name!r}: description must be text, not {self.description!r:.60}."
            )

    def _check_seconds(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value < inf
        ):
            raise BadSetting(
                f"Step {self.name!r}: {name} must be a number of seconds, not {value!r}."
            )


class Parallel:
    """Steps that are executed concurrently.

    Each step works on its own copy of the state. After the group, their changes are merged in the
    order in which the steps are written. If a step fails, unfinished steps are cancelled.
    Synchronous functions share the run's thread, so they run one after another.
    """

    def __init__(self, *steps: Step) -> None:
        for step in steps:
            if not isinstance(step, Step):
                raise BadSetting(f"Parallel takes steps, not {step!r:.60}.")
        self.steps = steps


type Steps = Sequence[Step | Parallel]


class Pipeline:
    """Steps that are registered under an agent's key.

    A pipeline is its own factory. A run that was started with another ``version`` is not resumed.
    Raises BadSetting if two steps have the same name.
    """

    def __init__(self, steps: Steps, *, version: str | int = 1) -> None:
        self.steps = list(steps)
        self.version = str(version)
        check_names(self.steps)

    def __call__(self) -> Pipeline:
        """Return the pipeline itself, as a registered factory does."""
        return self


def flat(steps: Steps) -> list[Step]:
    """Return all steps, including those in groups."""
    return [step for part in steps for step in group_of(part)]


def group_of(part: Step | Parallel) -> Sequence[Step]:
    """Return the steps that are executed concurrently. A single step is a group of one."""
    return part.steps if isinstance(part, Parallel) else (part,)


def check_names(steps: Steps) -> None:
    """Raise BadSetting if two steps share a name, or if an object is not a step or group."""
    for part in steps:
        if not isinstance(part, Step | Parallel):
            raise BadSetting(f"A pipeline is made of Step and Parallel, not of {part!r:.60}.")
    names = Counter(step.name for step in flat(steps))
    for name, n in names.items():
        if n > 1:
            raise BadSetting(f"Two steps are called {name!r}. Give each step a name of its own.")
