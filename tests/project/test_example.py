"""The example: a shop with rows, an agent with tools, and a model that needs no key."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, RunResult
from agents.items import ToolCallItem, ToolCallOutputItem
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from agentic_django.exceptions import NotAllowed
from agentic_django.models import AgentRun, AgentSession, ToolApproval
from agentic_django.services import decide_approval
from example import demo
from example.shop.agents import Desk, agents, desk, support_agent
from example.shop.catalogue import catalogue
from example.shop.demo_replies import Call, Result, Turn, reply
from example.shop.models import Customer, Order, OrderLine, Policy, Product, Refund, ShopError

BROWSER = {"accept": "text/html"}
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def shop(db: None) -> None:
    catalogue(1042, now=datetime.now(UTC)).save()


@pytest.fixture
def shared_shop(transactional_db: None) -> None:
    """A shop that other threads see: the SDK calls a tool that is a plain function in one."""
    catalogue(1042, now=datetime.now(UTC)).save()


@pytest.fixture(autouse=True)
def quick(settings: Any) -> None:
    settings.SHOP_DEMO_MODEL_PAUSE = 0


def order(number: int) -> Order:
    return Order.objects.with_everything().get(number=number)


def ask(*inputs: str, clerk_id: int | None = None) -> RunResult:
    """Say several things in one conversation and return the last run."""
    return async_to_sync(_conversation)(inputs, Desk(clerk_id))


class _Tidy(ThreadPoolExecutor):
    """Threads that leave no connection to the database behind."""

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(_and_disconnect, work, *args, **kwargs)


def _and_disconnect(work: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return work(*args, **kwargs)
    finally:
        connections.close_all()


async def _conversation(inputs: tuple[str, ...], context: Desk) -> RunResult:
    asyncio.get_running_loop().set_default_executor(_Tidy())
    history: list[Any] = []
    config = RunConfig(tracing_disabled=True)
    for text in inputs:
        said = [*history, {"role": "user", "content": text}]
        result = await Runner.run(support_agent(), said, context=context, run_config=config)
        while result.interruptions:
            state = result.to_state()
            for interruption in result.interruptions:
                state.approve(interruption)
            result = await Runner.run(support_agent(), state, run_config=config)
        history = result.to_input_list()
    return result


async def _streamed(text: str) -> tuple[Any, list[Any]]:
    result = Runner.run_streamed(support_agent(), text, run_config=RunConfig(tracing_disabled=True))
    events = [event async for event in result.stream_events()]
    return result, [event.data for event in events if event.type == "raw_response_event"]


def called(result: RunResult) -> list[str]:
    calls = (item for item in result.new_items if isinstance(item, ToolCallItem))
    return [call.raw_item.name for call in calls]  # type: ignore[union-attr]


def outputs(result: RunResult) -> list[str]:
    return [item.output for item in result.new_items if isinstance(item, ToolCallOutputItem)]


def seed(**options: Any) -> str:
    said = StringIO()
    call_command("seed_shop", stdout=said, **options)
    return said.getvalue()


# The rows


def test_seeding_makes_a_few_hundred_rows_and_says_so(db: None) -> None:
    assert seed() == "The shop has 250 orders from 80 customers, 46 products and 8 policies.\n"
    assert Order.objects.count() == 250
    assert Customer.objects.count() == 80
    assert 400 < OrderLine.objects.count() < 800


def test_seeding_again_changes_nothing_and_says_so(db: None) -> None:
    seed()
    Product.objects.update(stock=1)
    assert seed(seed=7) == "The shop has 250 orders already; nothing was changed.\n"
    assert set(Product.objects.values_list("stock", flat=True)) == {1}


def test_the_same_seed_gives_the_same_shop() -> None:
    def facts(seed: int) -> list[Any]:
        shop = catalogue(seed, now=NOW)
        orders = [(o.number, o.customer.name, o.status, o.ordered_at) for o in shop.orders]
        lines = [(line.order.number, str(line), line.price) for line in shop.lines]
        return [orders, lines, [(p.sku, p.stock) for p in shop.products]]

    assert facts(1) == facts(1)
    assert facts(1) != facts(2)


def test_order_1042_is_two_blue_mugs_and_a_teapot_delivered_three_days_ago(shop: None) -> None:
    facts = order(1042).facts()
    assert facts["status"] == "delivered"
    assert facts["days_since_delivery"] == 3
    assert facts["total"] == "48.00"
    assert facts["lines"] == [
        {"item": "Blue mug", "quantity": 2, "paid": "24.00"},
        {"item": "Teapot", "quantity": 1, "paid": "24.00"},
    ]


def test_no_order_was_delivered_before_it_was_placed_or_after_now() -> None:
    for each in catalogue(1042, now=NOW).orders:
        assert each.ordered_at <= (each.delivered_at or NOW) <= NOW


def test_an_order_is_told_in_four_statements(shop: None, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(4):
        Order.objects.with_everything().numbered(1042).facts()


def test_a_refund_never_exceeds_what_was_paid(shop: None) -> None:
    order(1042).refund(Decimal("40.00"), reference="a")
    with pytest.raises(ShopError, match=r"by 0.01 to 8.00, not 9.00"):
        order(1042).refund(Decimal("9.00"), reference="b")
    order(1042).refund(Decimal("8.00"), reference="c")
    with pytest.raises(ShopError, match="already been refunded in full"):
        order(1042).refund(Decimal("0.01"), reference="d")
    assert order(1042).refunded == Decimal("48.00")


def test_a_refund_with_the_same_reference_pays_once(shop: None) -> None:
    first = order(1042).refund(Decimal("10.00"), reference="a")
    assert order(1042).refund(Decimal("10.00"), reference="a") == first
    assert Refund.objects.count() == 1


def test_an_address_changes_only_until_the_order_is_shipped(shop: None) -> None:
    Order.objects.filter(number=1250).update(status=Order.Status.PLACED)
    order(1250).redirect("1 Quay")
    assert order(1250).address == "1 Quay"
    with pytest.raises(ShopError, match="is delivered"):
        order(1042).redirect("1 Quay")


@pytest.mark.parametrize("query", ["blue mug", "Blue Mugs", "mugs blue", "MUG-BLUE"])
def test_products_are_found_by_words_in_any_order_and_number(shop: None, query: str) -> None:
    assert [product.name for product in Product.objects.matching(query)] == ["Blue mug"]


def test_a_policy_is_found_by_a_word_of_its_topic(shop: None) -> None:
    assert Policy.objects.about("Damaged goods").topic == "damaged goods"
    assert Policy.objects.about("damaged parcel").topic == "damaged goods"
    with pytest.raises(ShopError, match="one on each of: cancellations, change of address"):
        Policy.objects.about("unicorns")


# The agent and its tools, driven by the SDK


def test_the_registry_offers_the_support_agent() -> None:
    assert isinstance(agents()["support"](), Agent)


def test_with_a_key_the_support_agent_uses_a_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert support_agent().model is None
    monkeypatch.setenv("OPENAI_MODEL", "gpt-5")
    assert support_agent().model == "gpt-5"


def test_an_order_is_answered_from_its_row(shared_shop: None) -> None:
    result = ask("Where is order 1042?")
    assert called(result) == ["find_order"]
    assert json.loads(outputs(result)[0]) == order(1042).facts()
    assert "was delivered 3 days ago" in result.final_output
    assert "| Blue mug | 2 | 24.00 |" in result.final_output
    assert "**48.00**" in result.final_output


def test_two_orders_are_looked_up_at_once(shared_shop: None) -> None:
    result = ask("What about orders 1042 and 1043?")
    assert called(result) == ["find_order", "find_order"]
    assert len(result.raw_responses) == 2
    assert "Order **1042**" in result.final_output
    assert "Order **1043**" in result.final_output


def test_a_refund_reads_order_and_policy_before_it_pays(shared_shop: None) -> None:
    clerk = User.objects.create_user("clerk")
    result = ask("Order 1042 arrived broken. Can I have my money back?", clerk_id=clerk.pk)
    assert called(result) == ["find_order", "read_policy", "refund_order"]
    assert "refunded **48.00 EUR**" in result.final_output
    assert order(1042).refunded == Decimal("48.00")
    assert Refund.objects.get().clerk == clerk


def test_a_second_refund_is_refused(shared_shop: None) -> None:
    result = ask("Refund order 1042", "And once more: refund it please")
    assert called(result) == ["find_order", "read_policy"]
    assert "already been refunded in full" in result.final_output
    assert Refund.objects.count() == 1


def test_part_of_an_order_can_be_refunded(shared_shop: None) -> None:
    ask("Refund 24.00 of order 1042, the teapot is broken")
    assert order(1042).refunded == Decimal("24.00")


def test_an_order_delivered_long_ago_is_not_refunded(shared_shop: None) -> None:
    result = ask("Refund order 1010")
    assert "too long ago" in result.final_output
    assert not Refund.objects.exists()


def test_an_unknown_order_is_told_in_words(shared_shop: None) -> None:
    result = ask("Refund order 9999")
    assert result.final_output == "There is no order 9999. Please check the number."


def test_products_are_searched_and_one_is_looked_up_in_stock(shared_shop: None) -> None:
    Product.objects.filter(name="Blue mug").update(stock=5)
    result = ask("Do you have blue mugs in stock?")
    assert called(result) == ["search_products", "check_stock"]
    assert result.final_output == "**Blue mug** costs 12.00 EUR; 5 are in stock."


def test_a_policy_is_quoted(shared_shop: None) -> None:
    result = ask("What is your policy on returns?")
    assert called(result) == ["read_policy"]
    assert "> Unused goods can be sent back within 30 days" in result.final_output


def test_an_address_is_changed_in_the_row(shared_shop: None) -> None:
    Order.objects.filter(number=1249).update(status=Order.Status.PLACED)
    ask("I want to change the address of order 1249 to 5 Mill Lane, Dunmere")
    assert order(1249).address == "5 Mill Lane, Dunmere"


@pytest.mark.parametrize("is_staff", [True, False])
def test_the_context_of_a_run_names_its_owner(is_staff: bool) -> None:
    run = AgentRun(owner=User(pk=7, is_staff=is_staff))
    assert desk(run) == Desk(clerk_id=7, is_staff=is_staff)


def test_the_context_of_a_run_of_nobody_names_nobody() -> None:
    assert desk(AgentRun()) == Desk(clerk_id=None, is_staff=False)


# The offline model


@pytest.mark.parametrize("text", ["help", "hello", "xyzzy", "Who are you?"])
def test_the_offline_model_says_that_it_is_one(text: str) -> None:
    assert "offline demo model" in str(reply(Turn(text)))


def test_an_order_is_meant_until_another_is_named() -> None:
    assert Turn("refund it", before=["hi", "where is order 1042?", "thanks"]).orders == [1042]
    assert Turn("refund 24.00 of order 7", before=["order 1042"]).orders == [7]


def test_a_question_without_an_order_asks_for_its_number() -> None:
    assert "number" in str(reply(Turn("I want my money back")))


def test_a_refused_tool_is_not_taken_for_a_refund() -> None:
    facts = {
        "order": 1042,
        "customer": "Ada",
        "status": "delivered",
        "days_since_delivery": 3,
        "lines": [],
        "total": "48.00",
        "refunded": "0.00",
    }
    results = [
        Result(Call("find_order", {"number": 1042}), json.dumps(facts)),
        Result(Call("read_policy", {"topic": "returns"}), "Within 30 days."),
        Result(Call("refund_order", {"number": 1042}), "The clerk said no."),
    ]
    answer = reply(Turn("refund order 1042", results=results))
    assert answer == "Nothing was refunded. The clerk said no."


def test_a_streamed_answer_arrives_in_pieces_and_in_order() -> None:
    result, raw = asyncio.run(_streamed("help"))
    kinds = [event.type for event in raw]
    pieces = [e.delta for e in raw if e.type == "response.output_text.delta"]
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in raw] == list(range(len(raw)))
    assert len(pieces) > 10
    assert "".join(pieces) == result.final_output
    assert result.context_wrapper.usage.total_tokens > 0


# The page and the command

desk_page = override_settings(
    ROOT_URLCONF="example.urls",
    LOGIN_URL="login",
    AGENTIC_DJANGO_AGENT_REGISTRY="example.shop.agents.agents",
    AGENTIC_DJANGO_DEFAULT_AGENT_KEY="support",
    AGENTIC_DJANGO_CONTEXT_FACTORY="example.shop.agents.desk",
    AGENTIC_DJANGO_BASE_TEMPLATE="shop/base.html",
)


@desk_page
def test_the_desk_asks_who_is_there(anonymous_client: Any) -> None:
    response = anonymous_client.get("/")
    assert response.status_code == 302
    assert response.url == "/login/?next=/"


@desk_page
def test_a_new_conversation_has_an_address_before_it_has_a_message(client: Any) -> None:
    page = client.get("/", follow=True)
    assert re.fullmatch(r"/conversations/[0-9a-f]{32}/", page.request["PATH_INFO"])
    assert "New conversation" in page.content.decode()
    assert not AgentSession.objects.exists()


@desk_page
def test_the_desk_shows_my_conversations_only(client: Any, user: User, other_user: User) -> None:
    AgentSession.objects.create(owner=user, session_key="mine", title="About mugs")
    AgentSession.objects.create(owner=other_user, session_key="theirs", title="A secret")
    page = client.get("/conversations/mine/").content.decode()
    assert "About mugs" in page
    assert "A secret" not in page + client.get("/conversations/theirs/").content.decode()


@desk_page
def test_a_question_on_the_desk_is_answered_from_the_rows(shared_shop: None, client: Any) -> None:
    question = {"session_key": "mine", "input": "Where is order 1042?"}
    page = client.post("/agents/runs/", question, follow=True, headers=BROWSER)
    assert page.redirect_chain[0][1] == 303
    desk = client.get("/conversations/mine/")
    for text in (page.content.decode(), desk.content.decode()):
        assert "was delivered 3 days ago" in text
        assert "48.00" in text


@desk_page
def test_a_refund_on_the_desk_names_its_clerk(shared_shop: None, client: Any, user: User) -> None:
    client.post("/agents/runs/", {"input": "Refund order 1042"})
    assert not Refund.objects.exists()
    (waiting,) = ToolApproval.objects.open().select_related("run")
    decide_approval(waiting, True, by=user)
    assert Refund.objects.get().clerk == user


@desk_page
def test_a_large_refund_is_for_staff_to_decide(
    shared_shop: None, client: Any, user: User, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_APPROVERS = "example.shop.approvers.may_decide"
    client.post("/agents/runs/", {"input": "Refund order 1042"})
    (waiting,) = ToolApproval.objects.open().select_related("run")
    with pytest.raises(NotAllowed):
        decide_approval(waiting, True, by=user, arguments={"number": 1042, "amount": "150.00"})
    ToolApproval.objects.update(arguments={"number": 1042, "amount": "150.00"})
    (waiting,) = ToolApproval.objects.open().select_related("run")
    url = f"/agents/approvals/{waiting.pk}/"
    assert client.post(url, {"decision": "approve"}, headers=BROWSER).status_code == 403
    boss = User.objects.create_user("boss", is_staff=True)
    client.force_login(boss)
    assert "Refund 48.00 EUR" in client.get("/agents/approvals/", headers=BROWSER).text
    assert decide_approval(waiting, False, by=boss).decided_by == boss


def test_a_taken_port_is_named_and_another_is_advised() -> None:
    port = demo.free_port("127.0.0.1", 0)
    said = rf"Port {port} is taken\. Try --port \d+\."
    with socket.create_server(("127.0.0.1", port)), pytest.raises(SystemExit, match=said):
        demo.free_port("127.0.0.1", port)


def test_the_logins_are_made_once_and_keep_a_changed_password(db: None) -> None:
    demo.make_login("admin", staff=True)
    admin = User.objects.get(username="admin")
    admin.set_password("changed")
    admin.save()
    demo.make_login("admin", staff=True)
    admin.refresh_from_db()
    assert admin.check_password("changed")
    assert admin.is_staff
