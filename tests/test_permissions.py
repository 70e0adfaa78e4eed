"""A hook of the host that fails denies, is logged, and does not affect other rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from agentic_django import permissions, services
from agentic_django.exceptions import NotAllowed
from agentic_django.models import AgentRun, ToolApproval
from tests.support.rows import make_run

pytestmark = pytest.mark.django_db

MADE_UP = [{"order": 1}, "not json", [], None, 5, {"amount": "much"}, {"amount": None}]


def waiting(user: User, arguments: Any) -> ToolApproval:
    run = make_run(user, "waiting")
    return ToolApproval.objects.create(
        run=run, call_id="c", kind="tool", tool="refund", arguments=arguments
    )


def by_amount(user: Any, approval: ToolApproval) -> bool:
    return bool(approval.arguments["amount"] <= 100)


async def asynchronous(user: Any, approval: ToolApproval) -> bool:
    return False


@pytest.mark.parametrize("arguments", MADE_UP)
def test_an_approvers_hook_that_raises_denies_and_others_are_listed(
    client: Client, user: User, settings: Any, arguments: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AGENTIC_DJANGO_APPROVERS = by_amount
    strange, fine = waiting(user, arguments), waiting(user, {"amount": 5})
    response = client.get("/agents/approvals/")
    assert response.status_code == 200
    assert [each["approval_id"] for each in response.json()["approvals"]] == [str(fine.pk)]
    assert "raised an exception, so it denies" in caplog.text
    with pytest.raises(NotAllowed):
        services.decide_approval(strange, True, by=user)
    assert client.get(f"/agents/approvals/{strange.pk}/").status_code == 200
    body = {"decision": "approve"}
    assert client.post(f"/agents/approvals/{strange.pk}/", body).status_code == 403


def test_an_asynchronous_hook_denies(
    user: User, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AGENTIC_DJANGO_APPROVERS = asynchronous
    assert not permissions.may_decide(user, waiting(user, {}))
    assert "Use a synchronous function" in caplog.text


def test_a_hook_for_agents_that_raises_denies(
    client: Client, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AGENTIC_DJANGO_AGENT_ACCESS = lambda request, key: 1 / 0
    assert client.post("/agents/runs/", {"input": "Hi"}).status_code == 403
    assert client.get("/agents/", headers={"Accept": "text/html"}).status_code == 200
    assert "ZeroDivisionError" in caplog.text
    assert not AgentRun.objects.exists()


@pytest.mark.parametrize("arguments", [*MADE_UP, {"amount": 500}, {"amount": 5}])
def test_the_hook_of_the_guide_denies_what_it_cannot_judge(user: User, arguments: Any) -> None:
    page = (Path(__file__).parent.parent / "docs/how-to/approvals.md").read_text()
    [code] = re.findall(r"```python\n(# mysite/approvers.py\n.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    approval = waiting(user, arguments)
    assert names["may_decide"](user, approval) is (arguments == {"amount": 5})
