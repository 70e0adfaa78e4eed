"""Functions for the host's code: submit, cancel and retry runs, and decide approvals.

They validate their arguments, and leave the changes to ``agentic_django.engine``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _

from agentic_django import registry, validation
from agentic_django.conf import settings
from agentic_django.engine import approvals, dispatch, lifecycle, recovery, sessions
from agentic_django.exceptions import BadInput, Conflict, SessionBusy
from agentic_django.models import ACTIVE, AgentRun, AgentSession, ToolApproval, database
from agentic_django.openai_agents import input_items
from agentic_django.permissions import is_owner, name_for_owner
from agentic_django.serialization import to_jsonable
from agentic_django.steps import submitted

__all__ = [
    "OnBusy",
    "answer_approval",
    "cancel_agent_run",
    "decide_approval",
    "enqueue_agent_run",
    "resolve_approval",
    "retry_agent_run",
    "submit_agent_run",
    "submit_pipeline_run",
]

type Data = Mapping[str, Any] | None

OnBusy = Literal["enqueue", "reject", "interrupt"]
"""The action of ``submit_agent_run`` if the session has an unfinished run."""


def submit_agent_run(
    *,
    owner: Any,
    input_payload: Any,
    session_key: str | None = None,
    agent_key: str | None = None,
    config: Data = None,
    context: Data = None,
    metadata: Data = None,
    on_busy: OnBusy = "enqueue",
    tenant: str = "",
) -> AgentRun:
    """Create a run, and enqueue it once the transaction is committed.

    - ``owner``: the user that the run belongs to, or None.
    - ``input_payload``: a string, or a list of the Agents SDK's input items.
    - ``session_key``: the session, created if the owner has none with this key; None for a new
      session.
    - ``agent_key``: the agent; None for the session's agent, or
      ``AGENTIC_DJANGO_DEFAULT_AGENT_KEY`` in a new session.
    - ``config``: run options, see ``validation.RunOptions``; they override
      ``AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS``.
    - ``context``, ``metadata``: JSON objects, the first for tools, the second for your code.
    - ``on_busy``: the action if the session has an unfinished run: ``enqueue`` this run after
      it, ``reject`` this run, or ``interrupt`` (cancel all unfinished runs).
    - ``tenant``: the tenant, if one installation serves several.

    The returned row is as it was inserted. ``refresh_from_db()`` loads its current status.

    Raises UnknownAgent, BadInput (an invalid session key, input or option), NotSerializable (a
    value that JSON cannot represent) and SessionBusy (``reject`` only), and writes nothing then.
    """
    if on_busy not in get_args(OnBusy):
        raise BadInput(errors={"on_busy": f"Give one of {', '.join(get_args(OnBusy))}."})
    run = AgentRun(
        owner=owner,
        tenant=tenant,
        config=validation.validated_run_options(config or {}),
        context=_data(context, "context"),
        metadata=_data(metadata, "metadata"),
    )
    run.input_payload = _input(input_payload)
    with transaction.atomic(using=database()):
        _assign_session(run, session_key, agent_key, on_busy)
        run.save(using=database(), force_insert=True)
        _enqueue(run)
    return run


def _enqueue(run: AgentRun) -> None:
    """Enqueue a run on commit, and make sure that this process recovers runs from then on."""
    dispatch.enqueue_on_commit(run)
    _sweep_on_commit()


def _input(payload: Any) -> str | list[dict[str, Any]]:
    """Return the input of a run as it is stored; raise BadInput for malformed items."""
    valid = validation.validated_input(payload)
    if not isinstance(valid, str):
        input_items.check_items(valid)
    return valid


def _data(value: Data, name: str) -> dict[str, Any]:
    """Return a JSON object that the database can store. Raises BadInput and NotSerializable."""
    data: dict[str, Any] = to_jsonable(dict(value or {}), name)
    validation.check_json(data, name)
    return data


def _assign_session(
    run: AgentRun, session_key: str | None, agent_key: str | None, on_busy: str
) -> None:
    """Set the agent, the session and the position of a new run."""
    default = settings.DEFAULT_AGENT_KEY
    session, is_fresh = _session(run, session_key, agent_key or default)
    run.session, run.agent_key = session, agent_key or session.agent_key or default
    registry.get(run.agent_key)
    if is_fresh:
        run.position = session.run_count
        return
    if on_busy == "interrupt":
        run.position = sessions.interrupt_session(session, by_owner=True)
        return
    run.position = session.reserve_position()
    # The counter is locked until the commit, so no other process can submit a run to this
    # session after the query below.
    if on_busy == "reject" and session.runs.using(database()).filter(status__in=ACTIVE).exists():
        raise SessionBusy


def _session(run: AgentRun, key: str | None, agent_key: str) -> tuple[AgentSession, bool]:
    """Return the session of a new run, and whether it was created.

    The title of a new session is the start of the user's first text, cut at a word.
    """
    payload = run.input_payload
    text = payload if isinstance(payload, str) else next(filter(None, map(_user_text, payload)), "")
    text = " ".join(re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", " ", text[:1000]).split())
    title = textwrap.shorten(text, 80, placeholder="…") if " " in text[:80] else text[:80]
    return sessions.get_or_create_session(
        key, run.owner, run.tenant, agent_key=agent_key, title=title, run_count=1
    )


def _user_text(item: dict[str, Any]) -> str:
    """Return the text of an item if it is a user's message, else an empty string."""
    content = item.get("content", "") if item.get("role") == "user" else ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return " ".join(text for text in texts if isinstance(text, str))


def submit_pipeline_run(
    *,
    owner: Any,
    steps: Sequence[Mapping[str, Any]],
    input_payload: Any = "",
    session_key: str | None = None,
    params: Data = None,
    metadata: Data = None,
    tenant: str = "",
) -> AgentRun:
    """Create a run of a pipeline whose steps are given as data, and enqueue it.

    Call this only for trusted callers, because they choose the functions that are called.

    - ``steps``: dicts with ``name``, ``module``, ``function`` and other arguments of
      ``steps.Step``. ``AGENTIC_DJANGO_STEP_MODULES`` lists the modules that are allowed.
    - ``params``: the initial state of the pipeline.
    - ``session_key``: the session of the run; None for a run without a session.

    Raises BadInput for invalid definitions, BadSetting for functions that are not allowed or do
    not exist, and NotSerializable, and writes nothing then.
    """
    run = AgentRun(
        owner=owner,
        tenant=tenant,
        agent_key=submitted.AGENT_KEY,
        input_payload=_input(input_payload) if input_payload else [],
        context=_data(params, "params"),
        metadata={
            **_data(metadata, "metadata"),
            submitted.METADATA_KEY: submitted.validated_steps(steps),
        },
    )
    with transaction.atomic(using=database()):
        if session_key is not None:
            run.session, is_fresh = _session(run, session_key, "")
            run.position = run.session.run_count if is_fresh else run.session.reserve_position()
        run.save(using=database(), force_insert=True)
        _enqueue(run)
    return run


def enqueue_agent_run(run_id: str | UUID) -> None:
    """Enqueue a run that your code created through the ORM.

    Raises AgentRun.DoesNotExist if the run does not exist, Conflict if it is not pending, and
    UnknownAgent if nothing is registered under its ``agent_key``.
    """
    try:
        run = AgentRun.objects.using(database()).get(pk=UUID(str(run_id)))
    except (ValueError, AgentRun.DoesNotExist):
        text = f"There is no run {str(run_id)!r}. Save the row before you enqueue it."
        raise AgentRun.DoesNotExist(text) from None
    if run.status != AgentRun.Status.PENDING:
        raise Conflict(f"Cannot enqueue this run: it is {run.status} now.")
    if run.agent_key != submitted.AGENT_KEY:
        registry.get(run.agent_key)
    _enqueue(run)


def cancel_agent_run(run: AgentRun, *, by: Any = None) -> AgentRun:
    """Cancel a pending, running or waiting run; ``by`` is the user who cancels it.

    Raises Conflict if the run has ended already. The row is read again.
    """
    lifecycle.cancel(run, name_for_owner(by, run), by_owner=is_owner(by, run))
    return run


def retry_agent_run(run: AgentRun, *, start_again: bool = False, by: Any = None) -> AgentRun:
    """Queue a failed, timed out or cancelled run again; ``by`` is the user who retries it.

    It resumes from its recorded calls; with ``start_again`` it makes all calls again. Raises
    Conflict if the run has another status, if its session has a later run, or if the host's own
    code executes it. The row is read again.
    """
    if run.is_inline:
        raise Conflict(_("Only the program that started this run can resume it."))
    lifecycle.retry(run, fresh=start_again, by=name_for_owner(by, run))
    _sweep_on_commit()
    return run


def decide_approval(
    approval: ToolApproval,
    approve: bool,
    *,
    by: Any = None,
    reason: str = "",
    arguments: Data = None,
) -> ToolApproval:
    """Approve or reject a call of a waiting run, or decline a question (``approve=False``).

    - ``by``: the user who decides. None for your own code, which may always decide.
    - ``reason``: the reason of a rejection, for the model.
    - ``arguments``: edited arguments of the call, for a tool that is ``runtime.editable``.

    The run continues when all its requests are decided. Raises NotAllowed, BadInput, and Conflict
    if the approval is decided already or the run is not waiting. The row is read again.
    """
    validation.check_json(reason, "reason")
    edited = None if arguments is None else _data(arguments, "arguments")
    approvals.approve_or_reject(approval, approve=approve, by=by, reason=reason, arguments=edited)
    _sweep_on_commit()
    return approval


def answer_approval(approval: ToolApproval, answer: Any, *, by: Any = None) -> ToolApproval:
    """Answer a question of ``RunContext.ask``: an option, a string, or a dict for a form.

    Raises the errors of ``decide_approval``.
    """
    approvals.answer_question(approval, to_jsonable(answer, "answer"), by=by)
    _sweep_on_commit()
    return approval


def resolve_approval(
    approval: ToolApproval,
    outcome: Literal["done", "repeat", "fail"],
    *,
    by: Any = None,
    reason: str = "",
    result: str = "",
) -> ToolApproval:
    """Resolve an interrupted call that must not be repeated automatically.

    ``done``: the call happened, with this ``result``. ``repeat``: make the call again. ``fail``:
    fail the run. Raises the errors of ``decide_approval``.
    """
    validation.check_json(reason, "reason")
    output = to_jsonable(result or "Done.", "result")
    approvals.resolve_interrupted_call(approval, outcome, by=by, reason=reason, result=output)
    _sweep_on_commit()
    return approval


def _sweep_on_commit() -> None:
    """Make sure that this process recovers runs after the transaction commits."""
    transaction.on_commit(recovery.ensure_sweeping, using=database(), robust=True)
