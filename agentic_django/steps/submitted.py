"""Builds pipelines that trusted code submits as data, with functions named by their path."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agentic_django import validation
from agentic_django.conf import settings
from agentic_django.exceptions import BadInput, BadSetting
from agentic_django.models import AgentRun
from agentic_django.steps import Pipeline, Step

__all__ = ["AGENT_KEY", "pipeline_of", "validated_steps"]

AGENT_KEY = ".pipeline"
"""The agent key of runs whose steps are in their metadata. A host's keys have no leading dot."""

METADATA_KEY = "steps"


class Definition(BaseModel):
    """One step as data; see ``steps.Step``."""

    model_config = ConfigDict(extra="forbid")

    name: str
    module: str
    function: str
    retries: Annotated[int, Ge(0)] = 0
    retry_delay: Annotated[float, Ge(0)] = 1.0
    timeout: Annotated[float, Gt(0)] | None = None
    description: str | None = None
    checkpoint: bool = True

    def step(self) -> Step:
        """Return the step. Raises BadSetting if its module is not allowed or does not exist."""
        _check_allowed(self.module)
        options = self.model_dump(exclude={"module", "function"})
        try:
            # The name must not be a dotted path, which could reach into another module.
            fn = getattr(import_module(self.module), self.function)
        except (ImportError, AttributeError) as error:
            raise BadSetting(f"Step {self.name!r}: {error}.") from error
        if not callable(fn):
            raise BadSetting(
                f"Step {self.name!r}: {self.module}.{self.function} is not a function."
            )
        return Step(fn=fn, **options)


_DEFINITIONS: TypeAdapter[list[Definition]] = TypeAdapter(list[Definition])


def _check_allowed(module: str) -> None:
    allowed = settings.STEP_MODULES
    # If the setting is a string by mistake, it would contain each of its substrings.
    if isinstance(allowed, str) or module not in allowed:
        raise BadSetting(
            f"Functions of {module!r} may not be submitted as steps. Add the module to "
            "AGENTIC_DJANGO_STEP_MODULES if they should."
        )


def validated_steps(steps: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the validated definitions of steps as JSON. Raises BadInput or BadSetting."""
    validation.check_json(steps, "steps")
    try:
        definitions = _DEFINITIONS.validate_python(steps)
    except ValidationError as error:
        where = error.errors()[0]
        path = ".".join(str(part) for part in where["loc"])
        raise BadInput(errors={f"steps.{path}": where["msg"]}) from error
    if not definitions:
        raise BadInput(errors={"steps": "Give at least one step."})
    Pipeline([definition.step() for definition in definitions])
    return [definition.model_dump() for definition in definitions]


def pipeline_of(run: AgentRun) -> Pipeline:
    """Return the pipeline that was submitted with a run."""
    definitions = _DEFINITIONS.validate_python(run.metadata[METADATA_KEY])
    return Pipeline([definition.step() for definition in definitions])
