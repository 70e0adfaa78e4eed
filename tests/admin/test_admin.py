"""The admin shows the record, changes nothing of it by hand, and has two levers."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from agentic_django.models import AgentEvent, AgentRun, AgentSession, AgentSessionItem, ToolApproval
from tests.support.rows import make_checkpoint, make_events, make_items, make_run, make_session

pytestmark = pytest.mark.django_db


def url(model: str, page: str = "changelist", *arguments: Any, **query: Any) -> str:
    return reverse(f"admin:agentic_django_{model}_{page}", args=arguments, query=query or None)


@pytest.fixture
def staff(django_user_model: type[User]) -> User:
    """Somebody with access to the admin and no permission yet."""
    return django_user_model.objects.create_user("op", password="op", is_staff=True)


def permit(user: User, *names: str) -> Client:
    """Return a client for a user who has these permissions."""
    permissions = Permission.objects.filter(
        content_type__app_label="agentic_django", codename__in=names
    )
    user.user_permissions.set(permissions)
    client = Client()
    client.force_login(User.objects.get(pk=user.pk))
    return client


def act(client: Client, action: str, *runs: AgentRun, **data: Any) -> Any:
    """Choose an action for some runs, and return the page that follows."""
    chosen = {"action": action, "_selected_action": [str(run.pk) for run in runs], **data}
    return client.post(url("agentrun"), chosen, follow=True)


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


@pytest.fixture
def full_run(user: User) -> AgentRun:
    """A run with all that a page shows."""
    session = make_session(user, session_key="orders", title="About orders")
    run = make_run(user, "failed", session=session, context={"shop": 7}, config={"max_turns": 3})
    make_events(run, 3, payload={"text": "Event text"})
    make_checkpoint(run, result={"text": "Recorded"})
    make_items(session, 2, run)
    detail = {"error": "It broke.", "error_code": "internal", "error_detail": "Traceback: ZeroDiv"}
    AgentRun.objects.filter(pk=run.pk).update(**detail, final_output={"answer": [1, "<b>"]})
    return run


# Pages


@pytest.mark.parametrize("model", ["agentsession", "agentrun", "agentevent"])
def test_lists_open(admin_client: Client, full_run: AgentRun, model: str) -> None:
    response = admin_client.get(url(model))
    assert response.status_code == 200
    assert response.context["cl"].result_count >= 1


def test_a_runs_page_shows_what_operators_need(admin_client: Client, full_run: AgentRun) -> None:
    page = admin_client.get(url("agentrun", "change", full_run.pk)).content.decode()
    for text in ("It broke.", "Traceback: ZeroDiv", "Event text", "Recorded", "shop", "max_turns"):
        assert text in page
    assert url("agentsession", "change", full_run.session_id) in page
    assert url("agentevent", run__id__exact=full_run.pk) in page


def test_a_runs_page_shows_output_as_indented_escaped_json(
    admin_client: Client, full_run: AgentRun
) -> None:
    page = admin_client.get(url("agentrun", "change", full_run.pk)).content.decode()
    text = "{\n  &quot;answer&quot;: [\n    1,\n    &quot;&lt;b&gt;&quot;\n  ]\n}"
    assert f'<pre class="agentic-value">{text}</pre>' in page


def test_a_sessions_page_shows_its_items_and_links_to_its_runs(
    admin_client: Client, full_run: AgentRun
) -> None:
    page = admin_client.get(url("agentsession", "change", full_run.session_id)).content.decode()
    assert "Item 1" in page
    assert "Item 2" in page
    assert url("agentrun", session__id__exact=full_run.session_id) in page
    assert url("agentrun", "change", full_run.pk) in page


def test_an_events_page_opens(admin_client: Client, full_run: AgentRun) -> None:
    event = AgentEvent.objects.first()
    assert event is not None
    page = admin_client.get(url("agentevent", "change", event.pk)).content.decode()
    assert "Event text" in page
    assert url("agentrun", "change", full_run.pk) in page


@pytest.mark.parametrize(
    "value", ["\x00", "\ud800", {"half": "\udfff"}, [], {}, 0, False, "", "x" * 50_000]
)
def test_any_text_of_a_model_can_be_shown(admin_client: Client, user: User, value: Any) -> None:
    session = make_session(user)
    run = make_run(user, session=session, input_payload=value)
    make_events(run, 1, payload={"text": value})
    AgentRun.objects.filter(pk=run.pk).update(final_output=value)
    AgentSessionItem.objects.create(session=session, sequence=1, payload={"content": value})
    AgentSession.objects.filter(pk=session.pk).update(item_count=1)
    for page in (("agentrun", run.pk), ("agentsession", session.pk)):
        response = admin_client.get(url(page[0], "change", page[1]))
        assert response.status_code == 200
        assert len(response.content) < 150_000


def test_a_run_outside_of_any_conversation_has_a_page(admin_client: Client) -> None:
    run = make_run(None, agent_key="job")
    assert admin_client.get(url("agentrun", "change", run.pk)).status_code == 200
    assert admin_client.get(url("agentrun")).status_code == 200


def test_only_the_last_events_are_shown_and_the_rest_is_linked(
    admin_client: Client, user: User
) -> None:
    run = make_run(user)
    make_events(run, 260)
    page = admin_client.get(url("agentrun", "change", run.pk)).content.decode()
    assert page.count('class="field-event_type"') == 200
    assert " 61 message" in page
    assert " 60 message" not in page
    assert ">260</a>" in page
    listed = admin_client.get(url("agentevent", run__id__exact=run.pk))
    assert listed.context["cl"].result_count == 260


@pytest.mark.parametrize("model", ["agentrun", "agentsession"])
def test_pages_work_under_a_strict_content_security_policy(
    admin_client: Client, full_run: AgentRun, model: str
) -> None:
    pk = full_run.pk if model == "agentrun" else full_run.session_id
    page = admin_client.get(url(model, "change", pk)).content.decode()
    assert "style=" not in page
    assert "onclick=" not in page
    assert page.count("<style") == 0


# Nothing is changed by hand


@pytest.mark.parametrize("model", ["agentsession", "agentrun", "agentevent"])
def test_rows_cannot_be_added_or_changed(
    admin_client: Client, full_run: AgentRun, model: str
) -> None:
    pks = {
        "agentrun": full_run.pk,
        "agentsession": full_run.session_id,
        "agentevent": AgentEvent.objects.values_list("pk", flat=True)[0],
    }
    assert admin_client.get(url(model, "add")).status_code == 403
    assert admin_client.post(url(model, "change", pks[model]), {"status": "x"}).status_code == 403
    page = admin_client.get(url(model, "change", pks[model])).content.decode()
    assert 'name="_save"' not in page
    assert "<textarea" not in page


def test_events_are_not_deleted_one_by_one(admin_client: Client, full_run: AgentRun) -> None:
    event = AgentEvent.objects.values_list("pk", flat=True)[0]
    assert admin_client.post(url("agentevent", "delete", event), {"post": "yes"}).status_code == 403


def test_pages_need_a_permission(staff: User, full_run: AgentRun) -> None:
    client = permit(staff)
    assert client.get(url("agentrun")).status_code == 403
    assert client.get(url("agentrun", "change", full_run.pk)).status_code == 403
    client = permit(staff, "view_agentrun")
    assert client.get(url("agentrun")).status_code == 200
    assert client.get(url("agentrun", "change", full_run.pk)).status_code == 200


def test_rows_of_other_tables_need_a_permission_of_their_own(
    staff: User, full_run: AgentRun
) -> None:
    page = permit(staff, "view_agentrun").get(url("agentrun", "change", full_run.pk)).content
    assert b"Event text" not in page
    client = permit(staff, "view_agentrun", "view_agentevent")
    assert b"Event text" in client.get(url("agentrun", "change", full_run.pk)).content


# Finding


@pytest.mark.parametrize("term", ["{pk}", "{head}", "orders", "ada", "It broke", "ZeroDiv"])
def test_runs_are_searched_by_id_session_error_and_owner(
    admin_client: Client, full_run: AgentRun, other_user: User, term: str
) -> None:
    make_run(other_user, session=make_session(other_user, session_key="returns"))
    text = term.format(pk=full_run.pk, head=str(full_run.pk)[:13])
    found = admin_client.get(url("agentrun", q=text)).context["cl"].result_list
    assert list(found) == [full_run]


@pytest.mark.parametrize("term", ["{pk}", "orders", "About", "ada"])
def test_sessions_are_searched_by_id_key_title_and_owner(
    admin_client: Client, full_run: AgentRun, other_user: User, term: str
) -> None:
    make_session(other_user, session_key="returns")
    text = term.format(pk=full_run.session_id)
    found = admin_client.get(url("agentsession", q=text)).context["cl"].result_list
    assert list(found) == [full_run.session]


def test_events_are_found_by_their_run(
    admin_client: Client, full_run: AgentRun, user: User
) -> None:
    make_events(make_run(user), 5)
    found = admin_client.get(url("agentevent", q=str(full_run.pk)))
    assert found.context["cl"].result_count == 3


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"status__exact": "failed"}, 1),
        ({"status__exact": "running"}, 0),
        ({"agent_key": "echo"}, 2),
        ({"agent_key": "other"}, 0),
        ({"created_at__year": "1999"}, 0),
    ],
)
def test_runs_are_filtered(
    admin_client: Client, full_run: AgentRun, user: User, query: Any, count: int
) -> None:
    make_run(user, "completed")
    assert admin_client.get(url("agentrun", **query)).context["cl"].result_count == count


def test_runs_are_filtered_by_owner(
    admin_client: Client, full_run: AgentRun, user: User, other_user: User
) -> None:
    theirs = make_run(other_user)
    make_run(None)
    listed = admin_client.get(url("agentrun"))
    for owner in (user, other_user):
        assert f"?owner={owner.pk}" in listed.text
    for owner, run in ((user, full_run), (other_user, theirs)):
        found = admin_client.get(url("agentrun", owner=owner.pk)).context["cl"].result_list
        assert list(found) == [run]
    assert admin_client.get(url("agentrun", owner="x")).context["cl"].result_count == 0


def test_the_page_of_a_pipeline_shows_its_steps_and_their_state(
    admin_client: Client, user: User
) -> None:
    run = make_run(user)
    kept = {"result": {"rows": 4000}, "state": {"delimiter": ";"}, "index": 0}
    recorded = {"kind": "step", "name": "parse", "result": kept, "duration_seconds": 2.14}
    make_checkpoint(run, "_step_executor_state/parse", **recorded)
    page = admin_client.get(url("agentrun", "change", run.pk)).text
    for text in ("Step state", "parse", "2.1 s", "&quot;rows&quot;: 4000"):
        assert text in page
    assert page.count("&quot;delimiter&quot;: &quot;;&quot;") == 2


def test_events_are_filtered_by_type(admin_client: Client, full_run: AgentRun) -> None:
    make_events(full_run, 1, event_type="tool.called")
    listed = admin_client.get(url("agentevent", event_type="tool.called"))
    assert listed.context["cl"].result_count == 1


# Statements


@pytest.mark.parametrize("model", ["agentsession", "agentrun", "agentevent"])
def test_a_list_needs_as_many_statements_for_many_rows_as_for_few(
    admin_client: Client, django_user_model: type[User], model: str
) -> None:
    def rows(count: int) -> None:
        for _ in range(count):
            owner = django_user_model.objects.create_user(f"user-{User.objects.count()}")
            make_events(make_run(owner, session=make_session(owner)), 2)

    def statements() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert admin_client.get(url(model)).status_code == 200
        return len(queries)

    rows(2)
    statements()
    few = statements()
    rows(10)
    assert statements() == few


@pytest.mark.parametrize("model", ["agentsession", "agentrun"])
def test_a_page_needs_as_many_statements_for_many_rows_as_for_few(
    admin_client: Client, user: User, model: str
) -> None:
    session = make_session(user)
    run = make_run(user, session=session)
    pk = run.pk if model == "agentrun" else session.pk

    def rows(count: int) -> None:
        make_events(run, count)
        make_items(session, count, run)
        for n in range(count):
            make_checkpoint(run, f"key {count} {n}")

    def statements() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert admin_client.get(url(model, "change", pk)).status_code == 200
        return len(queries)

    rows(2)
    statements()
    few = statements()
    rows(20)
    assert statements() == few


def test_the_list_of_runs_does_not_load_long_columns(
    admin_client: Client, full_run: AgentRun
) -> None:
    with CaptureQueriesContext(connection) as queries:
        admin_client.get(url("agentrun"))
    assert not [q for q in queries.captured_queries if "error_detail" in q["sql"]]


# Levers


def test_selected_runs_are_stopped(admin_client: Client, user: User) -> None:
    runs = [make_run(user, status) for status in ("pending", "running", "waiting")]
    assert messages_of(act(admin_client, "stop_runs", *runs)) == ["3 runs were stopped."]
    assert set(AgentRun.objects.values_list("status", flat=True)) == {"cancelled"}


def test_the_event_names_the_person_who_stopped_a_run(admin_client: Client, user: User) -> None:
    act(admin_client, "stop_runs", make_run(user, "running"))
    assert AgentEvent.objects.get(event_type="run.cancelled").payload == {
        "by": "staff",
        "by_owner": False,
    }


def test_runs_that_cannot_be_stopped_are_counted_with_the_reason(
    admin_client: Client, user: User
) -> None:
    runs = [make_run(user, status) for status in ("running", "completed", "completed")]
    stopped, left = sorted(messages_of(act(admin_client, "stop_runs", *runs)))
    assert stopped == "1 run was stopped."
    assert left.startswith("2 runs were not changed: ")
    assert "Completed" in left


@pytest.mark.parametrize("status", ["failed", "timed_out", "cancelled"])
def test_selected_runs_are_retried(
    admin_client: Client, user: User, status: str, django_capture_on_commit_callbacks: Any
) -> None:
    run = make_run(user, status)
    with django_capture_on_commit_callbacks(execute=True):
        assert messages_of(act(admin_client, "retry_runs", run)) == ["1 run was queued again."]
    assert AgentRun.objects.get(pk=run.pk).status == "completed"


def test_runs_that_cannot_be_retried_are_counted_with_the_reason(
    admin_client: Client, user: User
) -> None:
    session = make_session(user)
    overtaken = make_run(user, "failed", session=session)
    make_run(user, "completed", session=session)
    done = make_run(user, "completed")
    texts = messages_of(act(admin_client, "retry_runs", overtaken, done))
    assert len(texts) == 2
    assert any("Only the last run of a conversation" in text for text in texts)


@pytest.mark.parametrize("action", ["stop_runs", "retry_runs"])
def test_the_actions_need_the_permission_to_change_runs(
    staff: User, user: User, action: str
) -> None:
    run = make_run(user, "running" if action == "stop_runs" else "failed")
    before = run.status
    act(permit(staff, "view_agentrun"), action, run)
    assert AgentRun.objects.get(pk=run.pk).status == before
    act(permit(staff, "view_agentrun", "change_agentrun"), action, run)
    assert AgentRun.objects.get(pk=run.pk).status != before


# Deleting


def test_a_deletion_of_many_events_lists_none_of_them(
    admin_client: Client, full_run: AgentRun
) -> None:
    for model, pk in (("agentrun", full_run.pk), ("agentsession", full_run.session_id)):
        with CaptureQueriesContext(connection) as queries:
            page = admin_client.get(url(model, "delete", pk)).content.decode()
        assert "3 message" not in page
        assert not [q for q in queries.captured_queries if "agentevent" in q["sql"]]


def test_a_finished_run_is_deleted_with_its_events(
    admin_client: Client, full_run: AgentRun
) -> None:
    response = admin_client.post(url("agentrun", "delete", full_run.pk), {"post": "yes"})
    assert response.status_code == 302
    assert not AgentRun.objects.exists()
    assert not AgentEvent.objects.exists()
    assert AgentSessionItem.objects.filter(run=None).count() == 2


def test_a_session_is_deleted_with_its_runs_and_items(
    admin_client: Client, full_run: AgentRun
) -> None:
    page = url("agentsession", "delete", full_run.session_id)
    assert admin_client.post(page, {"post": "yes"}).status_code == 302
    assert not AgentSession.objects.exists()
    assert not AgentRun.objects.exists()
    assert not AgentSessionItem.objects.exists()


@pytest.mark.parametrize("status", ["pending", "running", "waiting"])
def test_an_unfinished_run_has_to_be_stopped_before_it_is_deleted(
    admin_client: Client, user: User, status: str
) -> None:
    session = make_session(user)
    run = make_run(user, status, session=session)
    for page in (("agentrun", run.pk), ("agentsession", session.pk)):
        response = admin_client.post(url(page[0], "delete", page[1]), {"post": "yes"})
        assert b"Stop it first" in response.content
    act(admin_client, "delete_selected", run, post="yes")
    assert AgentRun.objects.count() == 1


def test_deleting_needs_a_permission(staff: User, full_run: AgentRun) -> None:
    page = url("agentrun", "delete", full_run.pk)
    assert permit(staff, "view_agentrun").post(page, {"post": "yes"}).status_code == 403
    client = permit(staff, "view_agentrun", "delete_agentrun")
    assert client.post(page, {"post": "yes"}).status_code == 302


# In a browser


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
def test_a_run_is_read_and_stopped_in_a_browser_under_a_strict_policy(
    live_server: Any, open_page: Any, admin_user: User
) -> None:
    run = make_run(admin_user, "running", session=make_session(admin_user))
    make_events(run, 2, payload={"text": "Event text"})
    page = open_page(base_url=live_server.url, user=admin_user)
    page.goto(url("agentrun", "change", run.pk))
    page.get_by_text("Event text").first.wait_for()
    assert page.locator("pre.agentic-value").first.evaluate(
        "element => getComputedStyle(element).whiteSpace"
    ) in ("pre-wrap", "break-spaces")
    page.goto(url("agentrun"))
    page.check("input.action-select")
    page.select_option("select[name=action]", "stop_runs")
    page.click("button[name=index]")
    page.get_by_text("1 run was stopped.").wait_for()
    run.refresh_from_db()
    assert run.status == "cancelled"


def test_operators_see_open_approvals_and_decide_with_permission(
    admin_client: Client, user: User, settings: Any
) -> None:
    run = make_run(user, "waiting")
    approval = ToolApproval.objects.create(
        run=run, key="k", agent="Clerk", tool="pay", arguments={"amount": 4711}
    )
    assert "pay" in admin_client.get(url("toolapproval"), {"open": "yes"}).text
    assert "4711" in admin_client.get(url("toolapproval", "change", approval.pk)).text
    action = {"action": "approve", "_selected_action": [str(approval.pk)]}
    page = admin_client.post(url("toolapproval"), action, follow=True).text
    assert "You do not have permission to decide this." in page
    settings.AGENTIC_DJANGO_APPROVERS = lambda user, approval: user.is_staff
    page = admin_client.post(url("toolapproval"), action, follow=True).text
    assert "1 decision was saved." in page
    approval.refresh_from_db()
    assert (approval.decision, approval.decided_by.is_staff) == ("approved", True)
