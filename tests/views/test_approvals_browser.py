"""The example's refund asks, in a browser: approved, rejected, edited, by keyboard, without
JavaScript, and from two windows at once."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.core.management import call_command
from playwright.sync_api import Locator, Page, expect

from agentic_django.models import AgentRun, ToolApproval
from agentic_django.services import decide_approval
from example.shop.models import Refund

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def shop(user: User, settings: Any) -> AgentRun:
    """The example's shop, and a run of its agent that waits with a refund of 48.00."""
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = "example.shop.agents.agents"
    settings.AGENTIC_DJANGO_CONTEXT_FACTORY = "example.shop.agents.desk"
    settings.AGENTIC_DJANGO_APPROVERS = "example.shop.approvers.may_decide"
    settings.SHOP_DEMO_MODEL_PAUSE = 0
    call_command("seed_shop", verbosity=0)
    from agentic_django.services import submit_agent_run

    run = submit_agent_run(owner=user, agent_key="support", input_payload="Refund order 1042")
    run.refresh_from_db()
    assert run.status == "waiting", run.error_detail
    return run


def turn(page: Page) -> Locator:
    """Return the run's fragment."""
    return page.locator(".agentic-run")


def ended(page: Page) -> None:
    """Wait until the run has completed."""
    expect(page.locator('.agentic-run[data-status="completed"]')).to_be_visible(timeout=15_000)


def test_a_refund_is_approved(visit: Callable[..., Page], shop: AgentRun) -> None:
    page = visit(f"/agents/runs/{shop.pk}/")
    asked = page.get_by_role("region", name="Refund 48.00 EUR for order 1042?")
    expect(asked).to_be_visible()
    expect(asked.locator("dl")).to_contain_text("refund_order")
    expect(asked.locator("dl")).to_contain_text("48.00")
    asked.get_by_text("Edit before approving", exact=True).click()
    expect(asked.get_by_label("Amount")).to_have_value("48.00")
    found = Axe().run(page).response["violations"]
    assert not found, found
    page.get_by_role("button", name="Refund 48.00").click()
    ended(page)
    assert Refund.objects.get().amount == Decimal("48.00")


def test_a_refund_is_rejected_with_a_reason(visit: Callable[..., Page], shop: AgentRun) -> None:
    page = visit(f"/agents/runs/{shop.pk}/")
    page.get_by_label("Reason for rejecting (optional)").fill("Not without a picture.")
    page.get_by_role("button", name="Reject").click()
    ended(page)
    expect(turn(page)).to_contain_text("Not without a picture.")
    assert not Refund.objects.exists()


def test_the_amount_is_edited(visit: Callable[..., Page], shop: AgentRun) -> None:
    page = visit(f"/agents/runs/{shop.pk}/")
    page.get_by_text("Edit before approving", exact=True).click()
    page.get_by_label("Amount").fill("20.00")
    page.get_by_role("button", name="Approve with changes").click()
    ended(page)
    assert Refund.objects.get().amount == Decimal("20.00")
    assert ToolApproval.objects.get().was_edited


def test_the_list_is_decided_by_keyboard_alone(visit: Callable[..., Page], shop: AgentRun) -> None:
    page = visit("/agents/approvals/")
    expect(page.get_by_role("button", name="Refund 48.00")).to_be_visible()
    tab_to(page, page.get_by_role("button", name="Refund 48.00"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("Approved by you")).to_be_visible(timeout=15_000)
    assert Refund.objects.count() == 1


def tab_to(page: Page, wanted: Locator) -> None:
    """Reach something by keyboard."""
    for _ in range(15):
        page.keyboard.press("Tab")
        if wanted.evaluate("wanted => wanted === document.activeElement"):
            return
    raise AssertionError(f"{wanted} is not reached by keyboard.")


def test_a_refund_is_edited_by_keyboard_alone(visit: Callable[..., Page], shop: AgentRun) -> None:
    page = visit(f"/agents/approvals/{ToolApproval.objects.get().pk}/")
    tab_to(page, page.locator("summary", has_text="Edit before approving"))
    page.keyboard.press("Enter")
    expect(page.get_by_label("Amount")).to_be_visible()
    tab_to(page, page.get_by_label("Amount"))
    page.keyboard.press("Control+a")
    page.keyboard.type("12.50")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Approved by you")).to_be_visible(timeout=15_000)
    assert Refund.objects.get().amount == Decimal("12.50")


def test_second_window_shows_who_decided_first(
    visit: Callable[..., Page], shop: AgentRun, problems: Any
) -> None:
    problems.allow("409")
    first, second = (visit("/agents/approvals/") for _ in range(2))
    first.get_by_role("button", name="Refund 48.00").click()
    expect(first.get_by_text("Approved by you")).to_be_visible(timeout=15_000)
    second.get_by_role("button", name="Reject").click()
    told = second.locator(".agentic-problem", has_text="ada has already decided: approved.")
    expect(told).to_be_visible()
    assert Refund.objects.count() == 1
    second.goto(f"/agents/runs/{shop.pk}/")
    ended(second)


def test_second_window_on_the_run_shows_the_decision(
    visit: Callable[..., Page], shop: AgentRun
) -> None:
    first, second = (visit(f"/agents/runs/{shop.pk}/") for _ in range(2))
    first.get_by_label("Reason for rejecting (optional)").fill("Not without a picture.")
    first.get_by_role("button", name="Reject").click()
    for page in (first, second):
        ended(page)
        expect(page.get_by_role("button", name="Refund 48.00")).to_have_count(0)
        expect(turn(page)).to_contain_text("Not without a picture.")
    assert not Refund.objects.exists()


@pytest.mark.parametrize("htmx", [2], indirect=True)
def test_late_decision_shows_a_page_without_javascript(
    visit: Callable[..., Page], shop: AgentRun, problems: Any
) -> None:
    problems.allow("409")
    page = visit("/agents/approvals/", javascript=False)
    decide_approval(ToolApproval.objects.select_related("run").get(), False, by=shop.owner)
    page.get_by_role("button", name="Refund 48.00").click()
    expect(page.get_by_text("ada has already decided: rejected.")).to_be_visible()


LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"dark": True},
    "narrow": {"narrow": True},
    "no-js": {"javascript": False},
}


@pytest.mark.parametrize("htmx", [2], indirect=True)
def test_approvals_fit_small_and_dark_screens(
    visit: Callable[..., Page], shop: AgentRun, screenshot: Any
) -> None:
    for name, path in (("inbox", "/agents/approvals/"), ("asked", f"/agents/runs/{shop.pk}/")):
        for look, options in LOOKS.items():
            page = visit(path, **options)
            if look == "narrow":
                page.set_viewport_size({"width": 320, "height": 640})
            screenshot(page, f"approvals-{name}-{look}-folded")
            page.get_by_text("Edit before approving", exact=True).click()
            expect(page.get_by_label("Amount")).to_be_visible()
            screenshot(page, f"approvals-{name}-{look}")
            if look == "no-js":
                continue
            found = Axe().run(page).response["violations"]
            assert not found, found
            over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert over <= 0, f"{name} {look} is {over} px too wide"


@pytest.mark.parametrize("htmx", [2], indirect=True)
def test_without_javascript_the_forms_work(visit: Callable[..., Page], shop: AgentRun) -> None:
    page = visit(f"/agents/runs/{shop.pk}/", javascript=False)
    page.get_by_text("Edit before approving", exact=True).click()
    page.get_by_label("Amount").fill("5.00")
    page.get_by_role("button", name="Approve with changes").click()
    page.wait_for_url(f"**/agents/runs/{shop.pk}/")
    ended(page)
    assert Refund.objects.get().amount == Decimal("5.00")
