"""Every error that this package raises, and how an error suggests the right name.

The docstring of a class is its default message.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, ClassVar

from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

_MAX_FIELD = 500
_MAX_REASON = 1000

MAX_ERRORS = 20
"""The number of reasons that an error about input lists, so that its text stays short."""


class AgenticError(Exception):
    """Something in agentic_django went wrong."""

    code: ClassVar[str] = "error"
    """A stable, machine-readable name of the error, which JSON clients see."""

    user_message: ClassVar[Any] = ""
    """The translated message, if users may read it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or str(self.user_message) or (type(self).__doc__ or "").strip())


class BadSetting(AgenticError):
    """A setting has a value that cannot be used."""

    code = "bad_setting"


class UnknownAgent(AgenticError, LookupError):
    """No agent is registered under this key."""

    code = "unknown_agent"


class BadInput(AgenticError, ValueError):
    """The input cannot be accepted."""

    code = "bad_input"

    def __init__(self, message: str = "", *, errors: Mapping[str, str] | None = None) -> None:
        first = islice((errors or {}).items(), MAX_ERRORS)
        self.errors = {field[:_MAX_FIELD]: text[:_MAX_REASON] for field, text in first}
        """The first reasons, by the name of the field; long names and reasons are cut."""
        super().__init__(message or "; ".join(f"{f}: {text}" for f, text in self.errors.items()))


class InputTooLarge(BadInput):
    """The input is larger than this site accepts."""

    code = "input_too_large"


class NotSerializable(AgenticError, TypeError):
    """This value cannot be stored as JSON without losing something."""

    code = "not_serializable"


class RateLimited(AgenticError):
    """Too many runs were started in a short time."""

    code = "rate_limited"

    def __init__(self, message: str = "", *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Whole seconds after which another run is accepted."""


class NotAllowed(AgenticError):
    """You may not use this agent."""

    code = "not_allowed"
    user_message = _("You do not have permission to use this agent.")


class Conflict(AgenticError):
    """The state has changed in the meantime, so the change is not possible."""

    code = "conflict"


class SessionBusy(Conflict):
    """Another run of this conversation has not ended yet."""

    code = "session_busy"
    user_message = _("Another run in this conversation is not finished yet.")


class UnresolvedIntent(AgenticError):
    """A call that must not be repeated was interrupted, and it may have happened."""

    code = "unresolved_intent"

    def __init__(self, *, tool: str) -> None:
        super().__init__(f"{self.__doc__} Tool: {tool}.")


class AgentChanged(AgenticError):
    """The agent changed while the run waited, and no longer has the call that was decided."""

    code = "agent_changed"


class Declined(AgenticError):
    """A person declined to answer, or nobody answered in time."""

    code = "declined"

    def __init__(self, message: str = "", *, reason: str = "", expired: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        """The reason that the person gave."""
        self.expired = expired
        """Whether nobody answered in time."""


class RunWaiting(AgenticError):
    """The run waits for a person. Execute it again after everything is decided."""

    code = "waiting"


class StepError(AgenticError):
    """A step did not return a result."""

    code = "step_failed"


class StepExecutionError(StepError):
    """A step failed in each of its attempts; ``__cause__`` is what the last one raised."""

    def __init__(self, step: str, attempts: int) -> None:
        super().__init__(f"Step {step!r} failed after {attempts} attempt(s).")
        self.step = step
        """The step's name."""
        self.attempts = attempts
        """The number of attempts."""


class StepTimeoutError(StepExecutionError):
    """The last attempt of a step took longer than its timeout."""

    def __init__(self, step: str, attempts: int, seconds: float) -> None:
        super().__init__(step, attempts)
        text = f"Step {step!r} took longer than its timeout of {seconds:g} s"
        self.args = (f"{text}, in attempt {attempts}.",)


class StepCancelledError(AgenticError):
    """The run was cancelled. A step that raises this error cancels its run."""

    code = "cancelled"


class WorkCancelled(AgenticError):
    """A part of the run's work was cancelled, although nobody cancelled the run."""

    code = "internal"


class UserError(AgenticError):
    """This request cannot be completed."""

    # A step raises it, or a subclass. The owner of the run reads its message. The messages of other
    # exceptions are not shown.

    code = "user_error"
    user_message = _("This request cannot be completed.")


class PipelineChanged(AgenticError):
    """The steps differ from those with which the run began."""

    code = "pipeline_changed"


class StaleAttempt(BaseException):
    """The attempt no longer owns its run, so it cannot change it.

    A ``BaseException``: the SDK turns an ordinary exception in a tool into an error message for the
    model, and the attempt would continue.
    """

    def __init__(self, run: Any, verb: str) -> None:
        super().__init__(f"Attempt {run.attempt} no longer owns run {run.pk}: cannot {verb} it.")


class RunSuspended(BaseException):
    """The run has to wait for a person, so this attempt ends.

    A ``BaseException``, so that the error handling of a tool or a step does not treat it as a
    failure.
    """


MESSAGES: dict[str, Any] = {
    "agent_changed": _("The agent was changed while the run was waiting. Start over."),
    "answer_cut_off": _("The answer was cut off at its maximum length."),
    "answer_withheld": _("The model provider withheld the rest of the answer."),
    "declined": _("The run stopped because a question was not answered."),
    "unknown_agent": _("This agent is no longer available."),
    "database_away": _("The database could not be reached. Retry, or contact support."),
    "bad_setting": _("The agent could not be started."),
    "guardrail": _("The agent declined this request."),
    "internal": _("Something went wrong. Retry, or contact support."),
    "input_too_long": _("The conversation is too long for the model."),
    "invalid_output": _("The model's answer does not have the required form."),
    "lost": _("The run was interrupted. Retry, or contact support."),
    "max_turns": _("The agent reached its step limit."),
    "not_configured": _("This site's access to the model provider does not work."),
    "not_serializable": _("The agent's answer could not be saved."),
    "provider_busy": _("The model is busy. Retry in a few minutes."),
    "provider_refused": _("The model provider rejected the request."),
    "provider_unreachable": _("The model could not be reached. Retry, or contact support."),
    "tool_timed_out": _("A tool timed out."),
    "unknown_tool": _("The model called a tool that does not exist."),
    "unresolved_intent": _(
        "A step that must not run twice was interrupted. Check whether it was completed."
    ),
    "pipeline_changed": _("The steps were changed after this run started. Start over."),
    "step_failed": _("A step failed. Retry continues from that step."),
    "timed_out": _("The run timed out."),
}
"""The sentence that a person reads, by error code."""


def message_for_code(code: str) -> Any:
    """Return the (lazily translated) sentence for a code."""
    return MESSAGES.get(code, MESSAGES["internal"])


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a misspelt one, or None."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), None)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests a known name for an unknown one, or lists all names."""
    names = sorted(known)
    if near := nearest_name(name, names):
        return gettext("Did you mean %(near)r?") % {"near": near}
    return gettext("Known: %(names)s.") % {"names": ", ".join(names) or gettext("none")}
