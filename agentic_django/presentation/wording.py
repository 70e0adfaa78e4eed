"""Words for users: durations, costs, times, activities, progress, failures and events.

All texts are translated into the language of the reader.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings as django_settings
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.text import Truncator
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, npgettext_lazy, pgettext

from agentic_django.conf import settings
from agentic_django.exceptions import MESSAGES, message_for_code
from agentic_django.models import AgentRun
from agentic_django.serialization import printable

__all__ = [
    "Progress",
    "Stage",
    "activity",
    "advice",
    "ago",
    "cost",
    "day",
    "debug_detail",
    "duration",
    "elapsed",
    "event",
    "event_summary",
    "in_all",
    "in_words",
    "is_reconnecting",
    "progress",
    "reason",
    "short",
    "since",
    "stages",
    "took",
    "waited",
]

Status = AgentRun.Status


def duration(seconds: float | None) -> str:
    """Return a duration with its units: ``0.12 s``, ``2.1 s``, ``12 s``, ``2 m 41 s``."""
    if seconds is None:
        return ""
    seconds = max(float(seconds), 0.0)
    if seconds < 0.0095:
        return pgettext("duration", "%(count)s ms") % {"count": round(seconds * 1000)}
    if seconds < 59.5:
        places = 2 if seconds < 0.995 else 1 if seconds < 9.95 else 0
        number = number_format(round(seconds, places), decimal_pos=places)
        return pgettext("duration", "%(seconds)s s") % {"seconds": number}
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        parts = {"minutes": minutes, "seconds": rest}
        return pgettext("duration", "%(minutes)s m %(seconds)s s") % parts
    hours, minutes = divmod(minutes, 60)
    return pgettext("duration", "%(hours)s h %(minutes)s m") % {"hours": hours, "minutes": minutes}


def cost(dollars: float) -> str:
    """Return an amount of US dollars: ``$12.30``, ``0.4 ¢``."""
    if 0 < abs(dollars) < 0.995:
        cents = dollars * 100
        return f"{number_format(round(cents, 2 if cents < 0.1 else 1))} ¢"
    return f"${number_format(round(dollars, 2), decimal_pos=2, force_grouping=True)}"


def took(run: AgentRun) -> float | None:
    """Return the seconds that a finished run took, or None if it never started.

    For a run with several attempts, this is the time in which it ran. An interrupted attempt counts
    up to the last renewal of its lease.
    """
    if run.started_at is None or run.finished_at is None:
        return None
    if run.attempt > 1:
        return run.active_seconds or None
    return (run.finished_at - run.started_at).total_seconds()


def in_all(run: AgentRun) -> float | None:
    """Return the seconds from the request to the end of a run; None before its end."""
    if run.finished_at is None:
        return None
    return max((run.finished_at - run.created_at).total_seconds(), 0.0)


def waited(run: AgentRun) -> float | None:
    """Return the seconds in which a finished run did not work: queued, for a person, to retry."""
    total = in_all(run)
    return None if total is None else max(total - (took(run) or 0.0), 0.0)


def elapsed(run: AgentRun) -> float | None:
    """Return the seconds for which a run has been running, or None if it is not running."""
    if run.status != Status.RUNNING or run.started_at is None:
        return None
    if run.attempt > 1 and run.lease_ends_at is not None:
        renewed = run.lease_ends_at - timedelta(seconds=settings.LEASE_SECONDS)
        return run.active_seconds + max((run.read_at - renewed).total_seconds(), 0.0)
    return max((run.read_at - run.started_at).total_seconds(), 0.0)


def is_reconnecting(run: AgentRun) -> bool:
    """Whether the run waits for another worker, because its last attempt was interrupted."""
    return run.failures > 0 if run.status == Status.PENDING else run.is_orphaned


def activity(run: AgentRun) -> str:
    """Return the current activity of a running run, in words."""
    if run.activity:
        return run.activity
    open_calls = [step for step in run.steps if "output" not in step]
    if open_calls:
        return _("Using %(tool)s…") % {"tool": printable(str(open_calls[-1].get("tool", "")))}
    return _("Working…")


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a pipeline. ``state`` is done, busy, waiting, failed or none, as its dot shows."""

    label: str
    state: str
    words: str
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run, in percent and in words."""

    percent: int
    words: str


def stages(run: AgentRun) -> list[Stage]:
    """Return the steps of a pipeline so far."""
    return [_stage(run, step) for step in run.stages]


def _stage(run: AgentRun, step: dict[str, Any]) -> Stage:
    label = printable(str(step.get("description") or in_words(str(step["step_name"]))))
    match step["state"]:
        case "completed":
            return Stage(label, "done", _("done"), step.get("duration_seconds"))
        case "skipped":
            return Stage(label, "done", _("reused"), step.get("duration_seconds"))
        case "failed":
            tries = step.get("attempts") or 1
            words = ngettext("failed after %d attempt", "failed after %d attempts", tries) % tries
            words = words if tries > 1 else _("failed")
            return Stage(label, "failed", words, error=_step_error(step))
    if run.is_finished:
        return Stage(label, "none", _("stopped"))
    if run.status != Status.RUNNING or is_reconnecting(run):
        return Stage(label, "waiting", _("interrupted"))
    attempt = {"n": step.get("attempt") or 1, "most": step.get("max_attempts") or 1}
    if step["state"] == "retrying":
        words = _("retrying, attempt %(n)d of %(most)d") % attempt
        return Stage(label, "waiting", words, None, _step_error(step))
    if attempt["n"] > 1:
        return Stage(label, "busy", _("running, attempt %(n)d of %(most)d") % attempt)
    return Stage(label, "busy", _("running"))


def _step_error(step: dict[str, Any]) -> str:
    """Return why a step failed, or "" if the error is internal."""
    if step.get("code") == "internal":
        return ""
    return Truncator(printable(_field_text(step, "error"))).chars(500)


def in_words(name: str) -> str:
    """Return an identifier in words: ``Find order`` for ``find_order``."""
    words = re.sub(r"[-_.]+", " ", name).strip()
    return words[:1].upper() + words[1:]


def progress(run: AgentRun) -> Progress | None:
    """Return the progress of a run, or None if neither the host nor a step has reported any."""
    reported, steps = run.progress or {}, run.stages
    if not reported and not steps:
        return None
    try:
        percent = min(max(int(float(reported.get("progress_percent", 0))), 0), 100)
    except (TypeError, ValueError, OverflowError):
        percent = 0
    description = printable(str(reported.get("description") or ""))
    # Each step shows its own description. The host's own text says more than a count of steps.
    of_steps = [step.get(name) for step in steps for name in ("description", "step_name")]
    if description and reported.get("description") not in of_steps:
        return Progress(percent, description)
    done = sum(step["state"] in ("completed", "skipped") for step in steps)
    total = max([len(steps), *(step.get("total_steps") or 0 for step in steps)])
    text = ngettext("%(done)d of %(total)d step done", "%(done)d of %(total)d steps done", total)
    return Progress(percent, text % {"done": done, "total": total} if total else "")


def reason(run: AgentRun) -> str:
    """Return why a run failed, as a sentence."""
    return str(message_for_code(run.error_code))


_RETRY = gettext_lazy("Retry continues from the last saved step.")
_ASK_ANEW = gettext_lazy("Retry asks the model again.")
_SUPPORT = gettext_lazy("A retry is unlikely to help. Contact support.")

ADVICE: dict[str, Any] = {
    "unknown_agent": _SUPPORT,
    "bad_setting": _SUPPORT,
    "answer_cut_off": gettext_lazy("Ask for a shorter answer, or for the rest of it."),
    "answer_withheld": gettext_lazy("Rephrase your request and send it again."),
    "input_too_long": gettext_lazy(
        "Start a new conversation, or send a shorter message with fewer files."
    ),
    "not_configured": gettext_lazy(
        "Inform the operator of this site. A retry helps only after the operator has repaired it."
    ),
    "guardrail": gettext_lazy("Rephrase your request and send it again."),
    "declined": _RETRY,
    "invalid_output": _ASK_ANEW,
    "max_turns": _RETRY,
    "not_serializable": _SUPPORT,
    "provider_refused": gettext_lazy("Rephrase your request and send it again."),
    "timed_out": _RETRY,
    "tool_timed_out": _RETRY,
    "unknown_tool": _ASK_ANEW,
    "unresolved_intent": gettext_lazy("Contact support before you retry."),
}
"""The advice to the user by error code, where the reason does not include it."""


def advice(run: AgentRun) -> str:
    """Return advice about a failure, or "" if the reason includes it."""
    return str(ADVICE.get(run.error_code, ""))


def debug_detail(run: AgentRun) -> str:
    """Return the exception of a failure under ``DEBUG``, such as a provider's own sentence.

    It is empty otherwise. In production, staff read the whole traceback in the admin.
    """
    if not django_settings.DEBUG:
        return ""
    lines = run.error_detail.strip().splitlines()
    return Truncator(printable(lines[-1] if lines else "")).chars(1000)


EVENTS: dict[str, Any] = {
    "run.started": gettext_lazy("Started"),
    "run.retrying": gettext_lazy("Queued again"),
    "run.waiting": gettext_lazy("Waiting"),
    "run.completed": gettext_lazy("Completed"),
    "run.failed": gettext_lazy("Failed"),
    "run.cancelled": gettext_lazy("Stopped"),
    "run.timed_out": gettext_lazy("Timed out"),
    "agent.updated": gettext_lazy("Another agent took over"),
    "message": gettext_lazy("Message"),
    "reasoning": gettext_lazy("Thoughts"),
    "tool.called": gettext_lazy("Tool called"),
    "tool.output": gettext_lazy("Tool finished"),
    "step.started": gettext_lazy("Step started"),
    "step.completed": gettext_lazy("Step completed"),
    "step.failed": gettext_lazy("Step failed"),
    "step.retrying": gettext_lazy("Step retried"),
    "step.skipped": gettext_lazy("Step skipped"),
    "progress.update": gettext_lazy("Progress"),
    "approval.requested": gettext_lazy("Approval requested"),
    "approval.decided": gettext_lazy("Approval decided"),
    "log": gettext_lazy("Note"),
    "error": gettext_lazy("Error"),
}


def event(event_type: str) -> str:
    """Return an event type in words. A host's own type is returned unchanged."""
    return str(EVENTS.get(event_type, event_type))


REASONS: dict[str, Any] = {
    "asked": gettext_lazy("Retry requested"),
    "approval": gettext_lazy("Waiting for approval"),
    "database_away": gettext_lazy("The database could not be reached"),
    "decided": gettext_lazy("All approvals are decided"),
    "handed_back": gettext_lazy("The worker shut down"),
    "lost": gettext_lazy("The worker stopped responding"),
    "provider_busy": gettext_lazy("The model was busy"),
    "provider_unreachable": gettext_lazy("The model could not be reached"),
}
"""Why a run was queued again, by the ``reason`` of its event."""


_SUMMARY_FIELDS = (
    "tool",
    "step_name",
    "text",
    "summary",
    "error",
    "description",
    "reason",
    "decision",
    "message",
    "agent",
)
"""The fields that summarize an event. The first one that it has is shown."""


def event_summary(payload: Any) -> str:
    """Return a short summary of an event: its tool, step or text."""
    if not isinstance(payload, dict):
        return ""
    name = next((name for name in _SUMMARY_FIELDS if isinstance(payload.get(name), str)), "")
    return Truncator(printable(_field_text(payload, name))).chars(120)


def _field_text(payload: dict[str, Any], name: str) -> str:
    """Return the text of a field, translated if the text is the app's own."""
    text, code = str(payload.get(name) or ""), payload.get("code")
    if name == "error" and isinstance(code, str):
        return str(MESSAGES.get(code, text))
    if name == "reason" and text.startswith("by "):
        return _("Retry requested by %(name)s") % {"name": text.removeprefix("by ")}
    return str(REASONS.get(text, text)) if name == "reason" else text


_AGO: dict[str, Any] = {
    "year": npgettext_lazy("ago", "%(num)d year", "%(num)d years", "num"),
    "month": npgettext_lazy("ago", "%(num)d month", "%(num)d months", "num"),
    "week": npgettext_lazy("ago", "%(num)d week", "%(num)d weeks", "num"),
    "day": npgettext_lazy("ago", "%(num)d day", "%(num)d days", "num"),
    "hour": npgettext_lazy("ago", "%(num)d hour", "%(num)d hours", "num"),
    "minute": npgettext_lazy("ago", "%(num)d minute", "%(num)d minutes", "num"),
}
"""Django's units of time with a context, because some languages decline them after "ago"."""


def ago(moment: datetime) -> str:
    """Return the approximate time since a moment: ``2 days ago``."""
    if (timezone.now() - moment).total_seconds() < 60:
        return _("just now")
    return _("%(time)s ago") % {"time": timesince(moment, time_strings=_AGO, depth=1)}


def short(moment: datetime) -> str:
    """Return a short form of a moment, for lists: ``now``, ``2 m``, ``18:20`` or a date."""
    seconds = (timezone.now() - moment).total_seconds()
    if seconds < 60:
        return pgettext("when", "now")
    if seconds < 3600:
        return pgettext("duration", "%(minutes)s m") % {"minutes": int(seconds // 60)}
    local = timezone.localtime(moment)
    if (timezone.localdate() - local.date()).days < 2:
        return date_format(local, "TIME_FORMAT")
    return date_format(local, "SHORT_DATE_FORMAT")


def day(moment: datetime) -> str:
    """Return the heading of a list for a moment: ``Today``, ``Yesterday``, ``Last 7 days``."""
    days = (timezone.localdate() - timezone.localtime(moment).date()).days
    if days < 1:
        return _("Today")
    if days == 1:
        return _("Yesterday")
    return _("Last 7 days") if days < 7 else _("Older")


def since(moment: datetime, start: datetime) -> str:
    """Return the time from a start to a moment: ``+2.1 s``."""
    return f"+{duration((moment - start).total_seconds())}"
