"""A run asks a person, waits, and goes on with what was decided."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, HostedMCPTool, RunContextWrapper, function_tool
from agents.items import ModelResponse
from agents.testing import ModelStep, function_call
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection
from django.db.models.functions import Now
from openai.types.responses.response_output_item import McpApprovalRequest
from pydantic import BaseModel, Field, field_validator

from agentic_django import signals
from agentic_django.engine import lifecycle, recovery
from agentic_django.engine.approvals import awaiting
from agentic_django.exceptions import (
    BadInput,
    BadSetting,
    Conflict,
    Declined,
    NotAllowed,
    RunWaiting,
    SessionBusy,
)
from agentic_django.models import AgentRun, ToolApproval
from agentic_django.openai_agents import conversion
from agentic_django.permissions import Viewer
from agentic_django.presentation import approvals
from agentic_django.runtime import RunContext, asks, at_most_once, editable
from agentic_django.services import (
    answer_approval,
    cancel_agent_run,
    decide_approval,
    resolve_approval,
    retry_agent_run,
    submit_agent_run,
)
from agentic_django.steps import Parallel, Pipeline, Step
from tests.support.agents import USAGE
from tests.support.attempts import attempt, finish, numbered, payloads, recorded
from tests.support.rows import make_session

pytestmark = pytest.mark.django_db

MADE: list[Any] = []
"""The calls that were made, by name and argument."""


@pytest.fixture(autouse=True)
def _none_made() -> None:
    MADE.clear()


def paying(**options: Any) -> Any:
    """Return a tool that asks before it pays."""

    @function_tool(needs_approval=True, **options)
    async def pay(amount: int) -> str:
        """Pay."""
        MADE.append(("pay", amount))
        return f"paid {amount}"

    return pay


@function_tool
async def look(place: str) -> str:
    """Look; asks nobody."""
    MADE.append(("look", place))
    return f"{place} is fine"


def pay_call(amount: int = 5, call_id: str = "p1") -> Any:
    """Return a call of the tool that asks."""
    return function_call("pay", {"amount": amount}, call_id=call_id)


def look_call(call_id: str = "l1") -> Any:
    """Return a call of the tool that does not."""
    return function_call("look", {"place": "out"}, call_id=call_id)


@pytest.fixture
def begin(user: User, no_queue: None) -> Callable[..., AgentRun]:
    """Carry a new run through its first attempt."""

    def begin(key: str = "default", **columns: Any) -> AgentRun:
        columns = {"owner": user, "agent_key": key, "input_payload": "Hello", **columns}
        return attempt(AgentRun.objects.create(**columns))

    return begin


def asked(run: AgentRun) -> list[ToolApproval]:
    """Return what the run asks, oldest first."""
    return list(ToolApproval.objects.open().filter(run=run).select_related("run"))


def the(run: AgentRun) -> ToolApproval:
    """Return the one thing that the run asks."""
    (approval,) = asked(run)
    return approval


# Tools of agents


def test_a_call_that_needs_approval_parks_the_run(scripted: Any, begin: Any) -> None:
    scripted("default", [pay_call()], "Paid.", tools=[paying()])
    run = begin()
    assert (run.status, run.lease_ends_at, MADE) == ("waiting", None, [])
    approval = the(run)
    assert (approval.tool, approval.agent, approval.call_id) == ("pay", "default", "p1")
    assert approval.arguments == {"amount": 5}
    assert numbered(run)[-2:] == ["approval.requested", "run.waiting"]


def test_an_approved_call_is_made_once_and_the_run_goes_on(scripted: Any, begin: Any) -> None:
    model = scripted("default", [pay_call()], "Paid.", tools=[paying()])
    run = begin()
    approval = decide_approval(the(run), True, by=run.owner)
    assert (approval.decision, approval.decided_by) == ("approved", run.owner)
    run = finish(run)
    assert (run.status, run.final_output, run.failures) == ("completed", "Paid.", 0)
    assert MADE == [("pay", 5)]
    assert len(model.calls) == 2
    assert payloads(run, "tool.output")[0]["output"] == "paid 5"
    assert payloads(run, "approval.decided")[0]["decision"] == "approved"


def test_a_rejected_call_is_not_made_and_the_model_is_told_why(scripted: Any, begin: Any) -> None:
    model = scripted("default", [pay_call()], "As you like.", tools=[paying()])
    run = begin()
    decide_approval(the(run), False, by=run.owner, reason="Too much.")
    run = finish(run)
    assert (run.status, MADE) == ("completed", [])
    assert "Too much." in model.calls[1].input[-1]["output"]
    assert "Too much." in payloads(run, "tool.output")[0]["output"]


def test_what_stands_beside_a_gated_call_is_made_at_once_and_only_once(
    scripted: Any, begin: Any
) -> None:
    scripted("default", [pay_call(), look_call()], "Done.", tools=[paying(), look])
    run = begin()
    assert MADE == [("look", "out")]
    decide_approval(the(run), True)
    finish(run)
    assert MADE == [("look", "out"), ("pay", 5)]


def test_a_partial_decision_keeps_the_run_waiting(scripted: Any, begin: Any) -> None:
    scripted("default", [pay_call(1, "a"), pay_call(2, "b")], "Done.", tools=[paying()])
    run = begin()
    first, second = asked(run)
    decide_approval(first, True)
    run.refresh_from_db()
    assert (run.status, MADE) == ("waiting", [])
    decide_approval(second, False)
    run = finish(run)
    assert (run.status, MADE) == ("completed", [("pay", 1)])
    numbered(run)


def test_what_is_asked_at_once_is_listed_in_the_order_of_the_calls(
    scripted: Any, begin: Any
) -> None:
    calls = [pay_call(amount, f"p{amount}") for amount in range(8)]
    scripted("default", calls, "Done.", tools=[paying()])
    run = begin()
    ToolApproval.objects.update(requested_at=Now())
    assert [approval.arguments["amount"] for approval in asked(run)] == list(range(8))


def test_the_conversation_is_that_of_an_uninterrupted_run(
    scripted: Any, begin: Any, user: User
) -> None:
    session = make_session(user)
    scripted("default", [pay_call()], "Paid.", tools=[paying()])
    run = begin(session=session)
    assert not session.items.exists()
    decide_approval(the(run), True)
    finish(run)
    kinds = [item.payload.get("type", item.payload.get("role")) for item in session.items.all()]
    assert kinds == ["user", "function_call", "function_call_output", "message"]


def test_a_run_may_ask_again_and_again(scripted: Any, begin: Any) -> None:
    steps = [[pay_call(n, f"p{n}")] for n in range(3)]
    model = scripted("default", *steps, "Done.", tools=[paying()])
    run = begin()
    for _ in range(3):
        decide_approval(the(run), True)
        run = attempt(run)
    assert (run.status, run.usage["requests"]) == ("completed", 4)
    assert MADE == [("pay", 0), ("pay", 1), ("pay", 2)]
    assert len(model.calls) == 4


def test_a_function_may_say_which_calls_need_approval(scripted: Any, begin: Any) -> None:
    async def is_large(ctx: Any, arguments: dict[str, Any], call_id: str) -> bool:
        return bool(arguments["amount"] > 100)

    @function_tool(needs_approval=is_large)
    async def pay(amount: int) -> str:
        """Pay."""
        MADE.append(("pay", amount))
        return "paid"

    scripted("default", [pay_call(5, "a"), pay_call(500, "b")], "Done.", tools=[pay])
    run = begin()
    assert MADE == [("pay", 5)]
    assert the(run).arguments == {"amount": 500}


def test_a_rule_that_changed_meanwhile_does_not_overrule_the_decision(
    scripted: Any, begin: Any
) -> None:
    scripted("default", [pay_call()], "Done.", tools=[paying()])
    run = begin()
    decide_approval(the(run), False)
    tool = paying()
    tool.needs_approval = False
    scripted("default", "Done.", tools=[tool])
    assert (finish(run).status, MADE) == ("completed", [])


# In one transaction


@pytest.mark.django_db(transaction=True)
def test_a_process_that_dies_before_it_has_parked_its_run_has_parked_nothing_of_it(
    scripted: Any, begin: Any, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scripted("default", [pay_call(), look_call()], "Paid.", tools=[paying(), look])
    session = make_session(user)

    def die(*_: Any, **__: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "send_signal_on_commit", die)  # The last of what parks a run.
        with pytest.raises(Died):
            begin(session=session)
    run = AgentRun.objects.get()
    assert (run.status, run.usage, session.items.count()) == ("running", {}, 0)
    assert not ToolApproval.objects.exists()
    assert not run.events.filter(event_type__in=["approval.requested", "run.waiting"]).exists()
    run = attempt(lost(run))
    assert (run.status, the(run).tool) == ("waiting", "pay")
    assert (MADE, len(model.calls)) == ([("look", "out")], 1)


@pytest.mark.django_db(transaction=True)
def test_all_that_a_parked_run_needs_is_in_the_database(
    scripted: Any, begin: Any, user: User
) -> None:
    session = make_session(user)
    scripted("default", [pay_call(), look_call()], "Paid.", tools=[paying(), look])
    run = begin(session=session)
    assert (run.status, run.holder, run.usage["requests"]) == ("waiting", "", 1)
    assert recorded(run) == [("model", "default"), ("tool", "look")]
    decide_approval(the(run), True)
    # Another process has nothing of the first attempt: its model would fail a second time.
    model = scripted("default", "Paid.", tools=[paying(), look])
    run = finish(run)
    assert (run.status, len(model.calls)) == ("completed", 1), run.error_detail
    assert MADE == [("look", "out"), ("pay", 5)]
    kinds = [item.payload.get("type", item.payload.get("role")) for item in session.items.all()]
    calls = ["function_call"] * 2 + ["function_call_output"] * 2
    assert (kinds[0], sorted(kinds[1:5]), kinds[5]) == ("user", calls, "message")


class Died(BaseException):
    """Stands for the death of the process."""


def lost(run: AgentRun) -> AgentRun:
    """Let the lease of a run end whose process is gone, and find it."""
    AgentRun.objects.filter(pk=run.pk).update(lease_ends_at=Now() - timedelta(seconds=1))
    recovery.sweep()
    return run


# Nested agents


def nested(scripted: Any, *, outer_gate: bool = False) -> Any:
    """Script an agent with two calls of another one, which pays."""
    inner_model = scripted("inner", [pay_call(1, "i1")], [pay_call(2, "i2")], "In.", "In.")
    inner = Agent(name="inner", model=inner_model, tools=[paying(), look])
    tool = inner.as_tool("ask", "Ask the other.", needs_approval=outer_gate)
    calls = [function_call("ask", {"input": text}, call_id=text) for text in ("c1", "c2")]
    return scripted("default", calls, "Done.", tools=[tool])


def test_a_nested_agents_call_parks_the_run_and_is_made_once(scripted: Any, begin: Any) -> None:
    model = nested(scripted)
    run = begin()
    assert {row.agent for row in asked(run)} == {"inner"}
    assert payloads(run, "tool.output") == []
    for row in asked(run):
        decide_approval(row, True)
    run = finish(run)
    assert (run.status, run.usage["requests"]) == ("completed", 6), run.error_detail
    assert sorted(MADE) == [("pay", 1), ("pay", 2)]
    assert len(model.calls) == 2


def test_nested_calls_are_decided_apart(scripted: Any, begin: Any) -> None:
    nested(scripted)
    run = begin()
    one, two = sorted(asked(run), key=lambda row: row.call_id)
    decide_approval(one, False, reason="No.")
    assert attempt(run).status == "waiting"
    decide_approval(two, True)
    run = finish(run)
    assert (run.status, MADE) == ("completed", [("pay", 2)])


def test_a_gated_agent_may_itself_ask(scripted: Any, begin: Any) -> None:
    nested(scripted, outer_gate=True)
    run = begin()
    assert [row.tool for row in asked(run)] == ["ask", "ask"]
    for row in asked(run):
        decide_approval(row, True)
    run = attempt(run)
    assert [row.tool for row in asked(run)] == ["pay", "pay"], run.error_detail
    for row in asked(run):
        decide_approval(row, True)
    assert finish(run).status == "completed"
    assert sorted(MADE) == [("pay", 1), ("pay", 2)]


def test_nested_agents_with_the_same_call_ids_are_told_apart(scripted: Any, begin: Any) -> None:
    inner_model = scripted("inner", [pay_call(1, "x")], [pay_call(2, "x")], "In.", "In.")
    inner = Agent(name="inner", model=inner_model, tools=[paying()])
    calls = [function_call("ask", {"input": text}, call_id=text) for text in ("c1", "c2")]
    scripted("default", calls, "Done.", tools=[inner.as_tool("ask", "Ask.")])
    run = begin()
    by_amount = {row.arguments["amount"]: row for row in asked(run)}
    assert set(by_amount) == {1, 2}
    decide_approval(by_amount[1], False)
    decide_approval(by_amount[2], True)
    run = finish(run)
    assert (run.status, MADE) == ("completed", [("pay", 2)]), run.error_detail


# Hosted MCP


def streamed(*output: Any) -> ModelStep:
    """Return a model step of items that the SDK's double cannot stream by itself."""
    response = ModelResponse(output=list(output), usage=USAGE, response_id="r1")
    return ModelStep.stream([conversion.replay_event(response)])


def test_a_hosted_call_waits_for_a_person(scripted: Any, begin: Any) -> None:
    request = McpApprovalRequest(
        id="mcpr_1",
        type="mcp_approval_request",
        name="search",
        arguments='{"q": "mugs"}',
        server_label="shop",
    )
    tool = HostedMCPTool(
        tool_config={
            "type": "mcp",
            "server_label": "shop",
            "server_url": "https://mcp.invalid",
            "require_approval": "always",
        }
    )
    model = scripted("default", streamed(request), "Found.", tools=[tool])
    run = begin()
    assert run.status == "waiting", run.error_detail
    approval = the(run)
    assert (approval.kind, approval.tool, approval.arguments) == ("mcp", "search", {"q": "mugs"})
    decide_approval(approval, True)
    run = finish(run)
    assert (run.status, run.final_output) == ("completed", "Found."), run.error_detail
    answer = model.calls[1].input[-1]
    assert (answer["type"], answer["approve"]) == ("mcp_approval_response", True)


# Editing


def test_arguments_may_be_edited_where_the_tool_allows_it(scripted: Any, begin: Any) -> None:
    scripted("default", [pay_call(500)], "Done.", tools=[editable(paying())])
    run = begin()
    approval = decide_approval(the(run), True, by=run.owner, arguments={"amount": 50})
    assert approval.was_edited
    run = finish(run)
    assert MADE == [("pay", 50)]
    assert payloads(run, "approval.decided")[0]["arguments"] == {"amount": 50}
    approval.refresh_from_db()
    assert (approval.arguments, approval.effective_arguments) == ({"amount": 500}, {"amount": 50})


def test_edited_arguments_must_fit_the_tool(scripted: Any, begin: Any) -> None:
    scripted("default", [pay_call(500)], "Done.", tools=[editable(paying())])
    approval = the(begin())
    for arguments in ({"amount": "much"}, {}, {"amount": 5, "more": 1}):
        with pytest.raises(BadInput):
            decide_approval(approval, True, arguments=arguments)
    assert the(approval.run)


def test_arguments_of_other_tools_stay_as_they_are(scripted: Any, begin: Any) -> None:
    scripted("default", [pay_call()], "Done.", tools=[paying()])
    approval = the(begin())
    with pytest.raises(BadInput):
        decide_approval(approval, True, arguments={"amount": 1})
    decide_approval(approval, True, arguments={"amount": 5})


def test_who_edits_must_be_let_decide_what_comes_of_it(
    scripted: Any, begin: Any, user: User, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_APPROVERS = lambda user, asked: asked.arguments["amount"] <= 100
    scripted("default", [pay_call(50)], "Done.", tools=[editable(paying())])
    approval = the(begin())
    with pytest.raises(NotAllowed):
        decide_approval(approval, True, by=user, arguments={"amount": 500})
    assert the(approval.run).arguments == {"amount": 50}
    decide_approval(approval, True, by=user, arguments={"amount": 60})
    assert (finish(approval.run).status, MADE) == ("completed", [("pay", 60)])


# In the host's words


def test_a_host_words_what_is_asked_and_what_the_button_says(scripted: Any, begin: Any) -> None:
    tool = asks("Pay {amount} EUR?", action="Pay {amount}")(paying())
    scripted("default", [pay_call(500)], "Done.", tools=[tool])
    shown = approvals.as_seen_by(the(begin()), None)
    assert (shown.title, shown.action) == ("Pay 500 EUR?", "Pay 500")


@pytest.mark.parametrize("text", ["{price}", "{amount[0]}", "{amount.x}", "{0}", "{amount:q}"])
def test_words_that_do_not_fit_a_call_give_way_to_the_apps_own(
    scripted: Any, begin: Any, text: str
) -> None:
    scripted("default", [pay_call(500)], "Done.", tools=[asks(text, action=text)(paying())])
    shown = approvals.as_seen_by(the(begin()), None)
    assert (shown.title, shown.action) == ("Allow Default to use “Pay”?", "Pay")


def test_only_function_tools_are_worded() -> None:
    with pytest.raises(BadSetting):
        asks("Well?")(print)


# Who, when, and too late


def test_only_the_owner_decides_unless_the_host_says_otherwise(
    scripted: Any, begin: Any, other_user: User, settings: Any
) -> None:
    scripted("default", [pay_call()], "Done.", tools=[paying()])
    approval = the(begin())
    with pytest.raises(NotAllowed):
        decide_approval(approval, True, by=other_user)
    settings.AGENTIC_DJANGO_APPROVERS = lambda user, approval: user == other_user
    with pytest.raises(NotAllowed):
        decide_approval(approval, True, by=approval.run.owner)
    assert decide_approval(approval, True, by=other_user).decided_by == other_user


def test_owner_sees_the_open_approvals_of_the_viewers_tenant(
    scripted: Any, begin: Any, user: User
) -> None:
    scripted("default", [pay_call()], "Done.", tools=[paying()])
    approval = the(begin(tenant="acme"))
    assert awaiting(user, Viewer.for_user(user, "acme")) == [approval]
    assert awaiting(user, Viewer.for_user(user, "other")) == []
    assert awaiting(user, Viewer.for_user(user)) == []


def test_approver_sees_the_open_approvals_of_the_viewers_tenant_or_of_all_tenants(
    scripted: Any, begin: Any, other_user: User, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_APPROVERS = lambda user, approval: user == other_user
    scripted("default", [pay_call()], "Done.", tools=[paying()])
    approval = the(begin(tenant="acme"))
    assert awaiting(other_user, Viewer.for_user(other_user, "acme")) == [approval]
    assert awaiting(other_user, Viewer.for_user(other_user, "other")) == []
    assert awaiting(other_user, Viewer.for_user(other_user)) == [approval]


def test_the_second_of_two_is_told_who_did_what(scripted: Any, begin: Any, user: User) -> None:
    scripted("default", [pay_call(1, "a"), pay_call(2, "b")], "Done.", tools=[paying()])
    run = begin()
    first = asked(run)[0]
    stale = ToolApproval.objects.get(pk=first.pk)
    decide_approval(first, True, by=user)
    with pytest.raises(Conflict, match="ada has already decided: approved"):
        decide_approval(stale, False, by=user)
    assert ToolApproval.objects.get(pk=first.pk).decision == "approved"


def test_a_decision_on_a_run_that_ended_says_so(scripted: Any, begin: Any) -> None:
    scripted("default", [pay_call()], "Done.", tools=[paying()])
    run = begin()
    approval = the(run)
    cancel_agent_run(run)
    with pytest.raises(Conflict, match="Stopped"):
        decide_approval(approval, True)
    assert asked(run) == []
    assert MADE == []


def test_a_run_that_is_tried_again_asks_again(scripted: Any, begin: Any) -> None:
    model = scripted("default", [pay_call()], "Done.", tools=[paying()])
    run = begin()
    before = the(run)
    cancel_agent_run(run)
    run = attempt(retry_agent_run(run))
    assert (the(run).pk, len(model.calls)) == (before.pk, 1)
    decide_approval(the(run), True)
    assert finish(run).status == "completed"


def test_what_a_cancelled_run_leaves_has_no_call_without_an_output(
    scripted: Any, begin: Any, user: User
) -> None:
    session = make_session(user)
    calls = [pay_call(1, "a")], [pay_call(2, "b")]
    scripted("default", *calls, "Done.", tools=[paying()])
    run = begin(session=session)
    decide_approval(the(run), False, reason="No.")
    run = attempt(run)
    cancel_agent_run(run)
    outputs = [i.payload["output"] for i in session.items.all() if "output" in i.payload]
    assert outputs == [
        "This call was rejected by a person. Reason: No.",
        "This call was not completed.",
    ]


def test_nobodys_decision_is_a_rejection_after_a_while(
    scripted: Any, begin: Any, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_APPROVAL_TTL = 60
    scripted("default", [pay_call()], "Nobody came.", tools=[paying()])
    run = begin()
    assert recovery.sweep().expired == 0
    ToolApproval.objects.update(expires_at=Now() - timedelta(seconds=1))
    assert recovery.sweep().expired == 1
    run = finish(run)
    assert (run.final_output, MADE) == ("Nobody came.", [])
    approval = ToolApproval.objects.get()
    assert (approval.decision, approval.decided_by) == ("expired", None)


@pytest.mark.django_db(transaction=True)
def test_a_signal_tells_that_somebody_is_asked(scripted: Any, begin: Any) -> None:
    told: list[Any] = []

    def note(sender: Any, run: AgentRun, approval: ToolApproval, **_: Any) -> None:
        stored = ToolApproval.objects.filter(pk=approval.pk)
        told.append((approval.tool, run.status, stored.exists()))

    signals.agent_approval_requested.connect(note)
    scripted("default", [pay_call()], "Done.", tools=[paying()])
    begin()
    signals.agent_approval_requested.disconnect(note)
    assert told == [("pay", "waiting", True)]


@pytest.mark.django_db(transaction=True)
def test_the_mail_of_the_how_to_is_sent_to_those_who_may_decide(
    scripted: Any, begin: Any, other_user: User, settings: Any, mailoutbox: list[Any]
) -> None:
    settings.AGENTIC_DJANGO_APPROVERS = lambda user, approval: user == other_user
    settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
    text = (Path(__file__).parents[2] / "docs/how-to/approvals.md").read_text()
    code = text.partition("## Send email")[2].partition("```python")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "approvals.md", "exec"), names)
    scripted("default", [pay_call()], "Done.", tools=[paying()])
    run = begin()
    signals.agent_approval_requested.disconnect(names["write"])
    [mail] = mailoutbox
    assert mail.to == [other_user.email]
    assert f"/agents/approvals/{the(run).pk}/" in mail.body


def test_the_next_message_of_the_conversation_waits_too(
    scripted: Any, begin: Any, user: User
) -> None:
    session = make_session(user)
    scripted("default", [pay_call()], "Paid.", "Hello.", tools=[paying()])
    run = begin(session=session)
    later = AgentRun.objects.create(session=session, agent_key="default", input_payload="And?")
    assert attempt(later).status == "pending"
    decide_approval(the(run), True)
    assert attempt(run).status == "completed"
    assert attempt(later).status == "completed"


def test_a_message_may_be_refused_while_the_conversation_waits(
    scripted: Any, begin: Any, user: User
) -> None:
    session = make_session(user)
    scripted("default", [pay_call()], "Paid.", tools=[paying()])
    begin(session=session)
    with pytest.raises(SessionBusy):
        submit_agent_run(
            owner=user,
            session_key=session.session_key,
            agent_key="default",
            input_payload="And?",
            on_busy="reject",
        )


# Changes while a run waits


def test_a_tool_that_was_renamed_fails_the_run_clearly(scripted: Any, begin: Any) -> None:
    scripted("default", [pay_call()], "Paid.", tools=[paying()])
    run = begin()
    decide_approval(the(run), True)
    scripted("default", "Paid.", tools=[paying(name_override="pay_out")])
    run = attempt(run)
    assert (run.status, run.error_code, MADE) == ("failed", "agent_changed", [])


def test_an_agent_that_is_gone_fails_the_run_clearly(scripted: Any, begin: Any) -> None:
    scripted("default", [pay_call()], "Paid.", tools=[paying()])
    run = begin()
    AgentRun.objects.filter(pk=run.pk).update(agent_key="suport")
    decide_approval(the(run), True)
    run = attempt(run)
    assert (run.status, run.error_code, MADE) == ("failed", "unknown_agent", [])
    assert "suport" in run.error_detail


def test_a_nested_agent_that_was_renamed_fails_the_run_clearly(scripted: Any, begin: Any) -> None:
    def script(name: str, *steps: Any) -> None:
        inner = Agent(name=name, model=scripted("inner", *steps), tools=[paying()])
        ask = [function_call("ask", {"input": "?"}, call_id="c1")]
        scripted("default", ask, "Done.", tools=[inner.as_tool("ask", "Ask.")])

    script("inner", [pay_call(1, "i1")])
    run = begin()
    decide_approval(the(run), True)
    script("other", "Nothing to pay.")
    run = attempt(run)
    assert (run.status, run.error_code, MADE) == ("failed", "agent_changed", [])


# Secrets


def test_no_secret_of_the_hosts_context_is_stored(
    scripted: Any, begin: Any, settings: Any, transactional_db: None
) -> None:
    secret = "sk-very-secret-4711"
    settings.AGENTIC_DJANGO_CONTEXT_FACTORY = lambda run: {"api_key": secret}

    @function_tool(needs_approval=True)
    async def pay(ctx: RunContextWrapper[Any], amount: int) -> str:
        """Pay."""
        MADE.append(ctx.context["api_key"])
        return "paid"

    scripted("default", [pay_call()], "Done.", tools=[pay])
    run = begin()
    assert run.status == "waiting"
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT * FROM "{table}"')
            assert secret not in repr(cursor.fetchall()), table
    decide_approval(the(run), True)
    finish(run)
    assert [secret] == MADE


# Questions


def asking_with(register: Any, ask: Callable[[RunContext], Any]) -> None:
    """Register a function that asks; its answer is its output."""

    async def work(ctx: RunContext) -> Any:
        return await ask(ctx)

    register(work)


def test_a_function_asks_and_gets_a_choice(register: Any, begin: Any, user: User) -> None:
    asking_with(register, lambda ctx: ctx.ask("Which?", options=["red", "blue"]))
    run = begin("work")
    row = the(run)
    assert (row.kind, row.question, row.options) == ("question", "Which?", ["red", "blue"])
    with pytest.raises(BadInput):
        answer_approval(row, "green", by=user)
    answer_approval(row, "blue", by=user)
    assert finish(run).final_output == "blue"


class Address(BaseModel):
    """A small form."""

    street: str = Field(min_length=1)
    number: int = Field(gt=0)

    @field_validator("street")
    @classmethod
    def not_nowhere(cls, value: str) -> str:
        """Refuse what no schema can."""
        if value == "nowhere":
            raise ValueError("nowhere is no street")
        return value


def test_a_function_asks_with_a_form(register: Any, begin: Any) -> None:
    async def ask(ctx: RunContext) -> Any:
        address = await ctx.ask("Where?", schema=Address)
        return [type(address).__name__, address.number]

    asking_with(register, ask)
    run = begin("work")
    for wrong in ({"street": "Elm"}, {"street": "", "number": 1}, {"street": "Elm", "number": 0}):
        with pytest.raises(BadInput):
            answer_approval(the(run), wrong)
    answer_approval(the(run), {"street": "nowhere", "number": 1})
    run = attempt(run)
    assert "nowhere is no street" in the(run).question
    answer_approval(the(run), {"street": "Elm", "number": 7})
    assert finish(run).final_output == ["Address", 7]


def test_a_declined_question_is_told_to_the_code(register: Any, begin: Any) -> None:
    async def ask(ctx: RunContext) -> str:
        try:
            return str(await ctx.ask("Your name?"))
        except Declined as declined:
            return f"declined: {declined.reason}"

    asking_with(register, ask)
    run = begin("work")
    decide_approval(the(run), False, reason="None of your business.")
    assert finish(run).final_output == "declined: None of your business."


def test_steps_before_a_question_are_not_done_again(register: Any, begin: Any) -> None:
    async def first(ctx: RunContext, state: Any) -> str:
        MADE.append("first")
        return "one"

    async def second(ctx: RunContext, state: Any) -> Any:
        return await ctx.ask("Go on?", options=["yes", "no"])

    register(lambda: Pipeline([Step("first", first), Step("second", second, retries=2)]))
    run = begin("work")
    assert run.status == "waiting"
    answer_approval(the(run), "yes")
    assert finish(run).final_output == {"first": "one", "second": "yes"}
    assert MADE == ["first"]


def test_steps_beside_one_that_asks_are_finished_first(register: Any, begin: Any) -> None:
    async def ask(ctx: RunContext, state: Any) -> Any:
        return await ctx.ask("Go on?")

    async def work(ctx: RunContext, state: Any) -> str:
        await asyncio.sleep(0.05)
        MADE.append("work")
        return "worked"

    steps = Parallel(Step("ask", ask), Step("also", ask), Step("work", work))
    register(lambda: Pipeline([steps]))
    run = begin("work")
    assert run.status == "waiting", run.error_detail
    assert (len(asked(run)), MADE) == (2, ["work"])
    for row in asked(run):
        answer_approval(row, "yes")
    assert finish(run).final_output["work"] == "worked"
    assert MADE == ["work"]


def test_an_agent_within_a_function_waits_as_well(register: Any, begin: Any, scripted: Any) -> None:
    model = scripted("default", [pay_call()], "Paid.")
    tool = paying()
    agent = Agent(name="payer", model=model, tools=[tool])
    asking_with(register, lambda ctx: ctx.run_agent(agent, "Pay."))
    run = begin("work")
    decide_approval(the(run), True)
    run = finish(run)
    assert (run.final_output, MADE) == ("Paid.", [("pay", 5)]), run.error_detail


def test_agents_that_a_function_runs_at_once_are_all_asked_about(
    register: Any, begin: Any, scripted: Any
) -> None:
    def payer(name: str, amount: int) -> Agent[Any]:
        model = scripted(name, [pay_call(amount, f"p{amount}")], "Paid.")
        return Agent(name=name, model=model, tools=[paying()])

    agents = [payer("one", 1), payer("two", 2)]

    async def ask(ctx: RunContext) -> Any:
        return await asyncio.gather(*(ctx.run_agent(agent, "Pay.") for agent in agents))

    asking_with(register, ask)
    run = begin("work")
    rounds = 0
    while run.status == "waiting":
        rounds += 1
        for row in asked(run):
            decide_approval(row, True)
        run = attempt(run)
    assert (run.final_output, sorted(MADE)) == (["Paid.", "Paid."], [("pay", 1), ("pay", 2)])
    assert rounds == 1


@pytest.mark.django_db(transaction=True)
def test_a_hosts_own_run_waits_and_is_performed_again(user: User) -> None:
    async def perform(run_id: str | None = None) -> str:
        async with RunContext.open(run_id, user=user) as ctx:
            MADE.append(ctx.run_id)
            ctx.result = await ctx.ask("Go on?")
        return str(ctx.result)

    with pytest.raises(RunWaiting):
        async_to_sync(perform)()
    run = AgentRun.objects.get(pk=MADE[0])
    assert run.status == "waiting"
    answer_approval(the(run), "yes", by=user)
    assert async_to_sync(perform)(MADE[0]) == "yes"


# Calls that must not be repeated


def interrupted(scripted: Any, begin: Any) -> AgentRun:
    """Return a run that died in a call that must not be repeated, and was begun again."""

    @at_most_once
    @function_tool
    async def charge(amount: int) -> str:
        """Charge."""
        MADE.append(("charge", amount))
        if len(MADE) == 1:
            raise Died
        return f"charged {amount}"

    call = function_call("charge", {"amount": 5}, call_id="c1")
    scripted("default", [call], "Charged.", tools=[charge])
    with pytest.raises(Died):
        begin()
    run = AgentRun.objects.get()
    return attempt(lost(run))


def test_an_interrupted_call_asks_what_became_of_it(scripted: Any, begin: Any) -> None:
    run = interrupted(scripted, begin)
    row = the(run)
    assert (row.kind, row.tool, row.arguments) == ("intent", "charge", {"amount": 5})
    with pytest.raises(BadInput):
        decide_approval(row, True)


def test_an_interrupted_call_marked_as_done_is_not_made_again(scripted: Any, begin: Any) -> None:
    run = interrupted(scripted, begin)
    resolve_approval(the(run), "done", result="charged by hand", by=run.owner)
    run = finish(run)
    assert (run.status, len(MADE)) == ("completed", 1)
    assert payloads(run, "tool.output")[0]["output"] == "charged by hand"


def test_an_interrupted_call_is_repeated_once_if_a_person_says_so(
    scripted: Any, begin: Any
) -> None:
    run = interrupted(scripted, begin)
    resolve_approval(the(run), "repeat")
    run = finish(run)
    assert (run.status, len(MADE)) == ("completed", 2)


def test_an_interrupted_call_may_fail_the_run(scripted: Any, begin: Any) -> None:
    run = interrupted(scripted, begin)
    resolve_approval(the(run), "fail")
    run = finish(run)
    assert (run.status, run.error_code, len(MADE)) == ("failed", "unresolved_intent", 1)
    run = attempt(retry_agent_run(run))
    assert the(run).kind == "intent"


def test_recorded_results_hold_what_is_needed(scripted: Any, begin: Any) -> None:
    scripted("default", [pay_call(), look_call()], "Done.", tools=[paying(), look])
    run = begin()
    assert recorded(run) == [("model", "default"), ("tool", "look")]
