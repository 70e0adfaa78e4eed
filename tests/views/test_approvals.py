"""What waits for a person, over HTTP: shown, listed and decided in each format."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from agentic_django.models import AgentRun, ToolApproval
from agentic_django.runtime import RunContext, editable
from agentic_django.services import cancel_agent_run
from tests.engine.test_approvals import MADE, Address, pay_call, paying, the
from tests.support.attempts import attempt, finish
from tests.support.rows import make_session

pytestmark = pytest.mark.django_db(transaction=True)  # A thread looks after lost runs.

JSON = {"Accept": "application/json"}
PAGE = {"Accept": "text/html"}
HTMX = {"HX-Request": "true"}


@pytest.fixture(autouse=True)
def _none_made() -> None:
    MADE.clear()


@pytest.fixture
def run(scripted: Any, user: User, no_queue: None) -> AgentRun:
    """A run that waits with one call, whose arguments may be edited."""
    scripted("default", [pay_call(500)], "Done.", tools=[editable(paying())])
    run = AgentRun.objects.create(owner=user, agent_key="default", input_payload="Pay.")
    return attempt(run)


def address(run: AgentRun) -> str:
    """Return where the one thing is decided that the run asks."""
    return reverse("agents:approval-detail", args=[the(run).pk])


def test_the_fragment_of_a_run_shows_its_open_approval(client: Client, run: AgentRun) -> None:
    html = client.get(reverse("agents:run-fragment", args=[run.pk]), headers=HTMX).text
    assert "Allow Default to use “Pay”?" in html
    assert f'action="{address(run)}"' in html
    assert 'name="field.amount" value="500"' in html
    assert 'value="reject"' in html


def test_a_waiting_call_is_marked_and_its_conversation_links_to_the_list(
    client: Client, run: AgentRun
) -> None:
    html = client.get(reverse("agents:run-fragment", args=[run.pk]), headers=HTMX).text
    card = html[html.index('class="agentic-call"') :].partition("</summary>")[0]
    assert 'data-state="waiting"' in card
    assert "under way" not in card
    key = make_session(run.owner).session_key
    page = client.get(reverse("agents:session-detail", args=[key]), headers=PAGE).text
    assert f'href="{reverse("agents:approval-list")}"' in page


def test_a_decision_returns_the_run(client: Client, run: AgentRun) -> None:
    headers = {**HTMX, "HX-Target": f"run-container-{run.pk}"}
    data = {"decision": "approve", "field.amount": "500"}
    response = client.post(address(run), data, headers=headers)
    assert f'id="run-container-{run.pk}"' in response.text
    assert 'data-status="pending"' in response.text
    row = ToolApproval.objects.get()
    assert (row.decision, row.was_edited) == ("approved", False)
    finish(run)
    assert MADE == [("pay", 500)]


def test_a_form_edits_the_arguments(client: Client, run: AgentRun) -> None:
    data = {"decision": "approve", "field.amount": "50"}
    response = client.post(address(run), data, headers=PAGE)
    assert (response.status_code, response["Location"]) == (303, f"/agents/runs/{run.pk}/")
    finish(run)
    assert MADE == [("pay", 50)]


def test_a_form_without_fields_approves_the_call_as_it_is(client: Client, run: AgentRun) -> None:
    client.post(address(run), {"decision": "approve", "reason": ""}, headers=PAGE)
    row = ToolApproval.objects.get()
    assert (row.decision, row.was_edited) == ("approved", False)
    finish(run)
    assert MADE == [("pay", 500)]


def test_the_button_names_the_action_and_edits_have_a_separate_button(
    client: Client, run: AgentRun
) -> None:
    ToolApproval.objects.update(question="Pay 500 EUR?", action="Pay 500")
    html = client.get(reverse("agents:approval-list"), headers=PAGE).text
    assert "Pay 500 EUR?" in html
    as_it_is = html.rpartition("<form")[2].partition("</form>")[0]
    assert "Pay 500</button>" in as_it_is
    assert "field.amount" not in as_it_is
    edited = html.partition("<details")[2].partition("</details>")[0]
    assert 'name="field.amount" value="500"' in edited
    assert "Approve with changes</button>" in edited


def test_invalid_arguments_are_refused_by_field(client: Client, run: AgentRun) -> None:
    for amount in ("much", ""):
        data = {"decision": "approve", "field.amount": amount}
        response = client.post(address(run), data, headers=JSON)
        assert response.status_code == 400, response.text
    assert the(run)


def test_a_rejection_stores_its_reason(client: Client, run: AgentRun) -> None:
    data = {"decision": "reject", "reason": "Too much.", "field.amount": "500"}
    client.post(address(run), data, headers=PAGE)
    row = ToolApproval.objects.get()
    assert (row.decision, row.reason) == ("rejected", "Too much.")


def test_a_json_client_decides_an_approval(client: Client, run: AgentRun) -> None:
    body = {"decision": "approve", "arguments": {"amount": 7}}
    url = address(run)
    response = client.post(url, body, content_type="application/json")
    assert (response.status_code, response.json()["decision"]) == (200, "approved")
    assert response.json()["status"] == "pending"
    assert client.post(url, body, content_type="application/json").status_code == 409


def test_the_error_of_a_second_decision_names_the_first_one(client: Client, run: AgentRun) -> None:
    url = address(run)
    client.post(url, {"decision": "reject"}, headers=PAGE)
    for headers in (JSON, HTMX, PAGE):
        response = client.post(url, {"decision": "reject"}, headers=headers)
        assert response.status_code == 409
        assert "ada has already decided: rejected" in response.text


def test_a_decision_on_a_stopped_run_says_so(client: Client, run: AgentRun) -> None:
    url = address(run)
    cancel_agent_run(run)
    response = client.post(url, {"decision": "reject"}, headers=JSON)
    assert response.status_code == 409
    assert "Stopped" in response.json()["detail"]


def test_other_users_do_not_find_the_approval(other_client: Client, run: AgentRun) -> None:
    assert other_client.get(address(run), headers=JSON).status_code == 404
    response = other_client.post(address(run), {"decision": "reject"}, headers=JSON)
    assert response.status_code == 404
    assert other_client.get(reverse("agents:approval-list"), headers=JSON).json() == {
        "approvals": []
    }


def test_a_user_without_permission_may_not_decide(
    client: Client, other_client: Client, other_user: User, run: AgentRun, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_APPROVERS = lambda user, approval: user == other_user
    response = client.post(address(run), {"decision": "reject"}, headers=JSON)
    assert response.status_code == 403
    html = client.get(reverse("agents:run-fragment", args=[run.pk]), headers=HTMX).text
    assert "Waiting for approval by someone else." in html
    listed = other_client.get(reverse("agents:approval-list"), headers=JSON).json()
    assert [row["tool"] for row in listed["approvals"]] == ["pay"]
    response = other_client.post(address(run), {"decision": "reject"}, headers=PAGE)
    assert response["Location"] == reverse("agents:approval-list")


def test_the_list_is_a_page_with_forms(client: Client, run: AgentRun) -> None:
    html = client.get(reverse("agents:approval-list"), headers=PAGE).text
    assert f'action="{address(run)}"' in html
    client.post(address(run), {"decision": "reject"}, headers=PAGE)
    html = client.get(reverse("agents:approval-list"), headers=PAGE).text
    assert "Nothing to approve." in html


def test_page_of_an_approval_shows_the_decision(client: Client, run: AgentRun) -> None:
    url = address(run)
    assert "Allow Default to use" in client.get(url, headers=PAGE).text
    client.post(url, {"decision": "reject", "reason": "No."}, headers=PAGE)
    html = client.get(url, headers=PAGE).text
    assert "Rejected by you" in html
    assert "<button" not in html


def test_a_get_or_an_invalid_body_decides_nothing(client: Client, run: AgentRun) -> None:
    for body in ({"decision": "maybe"}, {"x": 1}, {"decision": "done"}, {"decision": "answer"}):
        response = client.post(address(run), body, content_type="application/json")
        assert response.status_code == 400, body
    assert client.post(address(run), "x", content_type="text/plain").status_code == 415
    assert client.get(reverse("agents:approval-detail", args=["x"])).status_code == 404
    assert the(run)


@pytest.fixture
def question(register: Any, user: User, no_queue: None) -> Any:
    """Return a run of work that asks."""

    def question(**options: Any) -> AgentRun:
        async def work(ctx: RunContext) -> Any:
            return str(await ctx.ask("Well?", **options))

        register(work)
        run = AgentRun.objects.create(owner=user, agent_key="work", input_payload="Ask.")
        return attempt(run)

    return question


def test_options_are_buttons(client: Client, question: Any) -> None:
    run = question(options=["red", "blue"])
    html = client.get(address(run), headers=PAGE).text
    assert 'name="answer" value="blue"' in html
    client.post(address(run), {"answer": "blue", "reason": ""}, headers=PAGE)
    assert finish(run).final_output == "blue"


def test_a_form_is_filled_in(client: Client, question: Any) -> None:
    run = question(schema=Address)
    data = {"decision": "answer", "field.street": "Elm", "field.number": "7"}
    response = client.post(address(run), {**data, "field.number": "0"}, headers=JSON)
    assert response.json()["errors"][0]["field"] == "number"
    client.post(address(run), data, headers=PAGE)
    assert finish(run).final_output == "street='Elm' number=7"


def test_a_text_is_answered_or_declined(client: Client, question: Any) -> None:
    run = question()
    assert "Your answer" in client.get(address(run), headers=PAGE).text
    assert client.post(address(run), {"decision": "answer"}, headers=JSON).status_code == 400
    client.post(address(run), {"decision": "answer", "answer": "So so."}, headers=PAGE)
    assert finish(run).final_output == "So so."


def test_a_form_with_two_decisions_is_refused(client: Client, run: AgentRun) -> None:
    body = "decision=reject&decision=approve"
    kind = "application/x-www-form-urlencoded"
    response = client.generic("POST", address(run), body, content_type=kind)
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == ["decision"]
    assert the(run).is_open


def test_a_form_with_a_field_twice_is_refused(client: Client, run: AgentRun) -> None:
    body = "decision=approve&field.amount=1&field.amount=500"
    kind = "application/x-www-form-urlencoded"
    response = client.generic("POST", address(run), body, content_type=kind)
    assert response.status_code == 400
    assert the(run).is_open


@pytest.mark.parametrize("field", ["arguments", "answer"])
def test_a_number_that_is_too_long_to_store_is_refused(
    client: Client, run: AgentRun, field: str
) -> None:
    value = f'{{"amount": {"9" * 4200}}}'
    decision = "approve" if field == "arguments" else "answer"
    body = f'{{"decision": "{decision}", "{field}": {value}}}'
    response = client.generic("POST", address(run), body, content_type="application/json")
    assert response.status_code == 400
    assert the(run).is_open


def test_a_number_in_a_form_that_is_too_long_to_store_is_refused(
    client: Client, run: AgentRun
) -> None:
    body = f"decision=approve&field.amount={'9' * 4200}"
    kind = "application/x-www-form-urlencoded"
    response = client.generic("POST", address(run), body, content_type=kind)
    assert response.status_code == 400
    assert the(run).is_open
