"""What a host writes: steps, groups of them, and pipelines."""

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
    """One step: ``fn(ctx, state)`` returns what JSON can hold, and may change ``state``.

    - ``retries``: how often it is tried again; ``retry_delay``: seconds before the first of
      those, twice as many before each further one.
    - ``timeout``: seconds that one attempt may take.
    - ``description``: what it does, in words for a person.
    - ``checkpoint``: False for a step that is done again each time the run is resumed.

    Raises BadSetting for a value that cannot be used.
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
            raise BadSetting(f"Step {self.name!r}: fn is a function, not {self.fn!r:.60}.")
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise BadSetting(f"Step {self.name!r}: retries is a number from 0, not {retries!r}.")
        self._check_seconds("retry_delay", 0)
        if self.timeout is not None:
            self._check_seconds("timeout", 1e-9)
        if not isinstance(self.description, str | Promise | None):
            raise BadSetting(
                f"Step {self.name!r}: description is no text: {self.description!r:.60}."
            )

    def _check_seconds(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value < inf
        ):
            raise BadSetting(f"Step {self.name!r}: {name} is a number of seconds, not {value!r}.")


class Parallel:
    """Steps that are done at the same time.

    Each works on a copy of the state as it was before the group; what each changed is put
    together behind it, in the order in which the steps are written. If one fails, those that
    have not ended are cancelled. Synchronous functions share the run's thread, and so take
    turns.
    """

    def __init__(self, *steps: Step) -> None:
        for step in steps:
            if not isinstance(step, Step):
                raise BadSetting(f"Parallel takes steps, not {step!r:.60}.")
        self.steps = steps


type Steps = Sequence[Step | Parallel]


class Pipeline:
    """Steps under an agent's key; it is its own factory.

    Raises BadSetting for a name that is used twice or too long.

    ``version`` says which definition it is: a run that was begun with another one is refused.
    """

    def __init__(self, steps: Steps, *, version: str | int = 1) -> None:
        self.steps = list(steps)
        self.version = str(version)
        check_names(self.steps)

    def __call__(self) -> Pipeline:
        """Return the pipeline, as a registered factory does."""
        return self


def flat(steps: Steps) -> list[Step]:
    """Return all steps, those of groups among them."""
    return [step for part in steps for step in group_of(part)]


def group_of(part: Step | Parallel) -> Sequence[Step]:
    """Return the steps that are done at the same time; a step by itself is a group of one."""
    return part.steps if isinstance(part, Parallel) else (part,)


def check_names(steps: Steps) -> None:
    """Raise BadSetting for steps that share a name, and for what is no step."""
    for part in steps:
        if not isinstance(part, Step | Parallel):
            raise BadSetting(f"A pipeline is made of Step and Parallel, not of {part!r:.60}.")
    names = Counter(step.name for step in flat(steps))
    for name, n in names.items():
        if n > 1:
            raise BadSetting(f"Two steps are called {name!r}. Give each step a name of its own.")
