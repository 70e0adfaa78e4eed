"""The support agent: its instructions, and the tools with which it reads and changes the shop.

``AGENTIC_DJANGO_AGENT_REGISTRY`` names :func:`agents`. Some tools are plain functions, others
are coroutines: both use the ORM as usual.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from agents import (
    Agent,
    RunContextWrapper,
    default_tool_error_function,
    function_tool,
    set_tracing_disabled,
)
from agents.tool_context import ToolContext
from django.conf import settings

from agentic_django.runtime import asks, editable
from example.shop.demo_model import DemoModel
from example.shop.models import Order, Policy, Product, ShopError

INSTRUCTIONS = """\
You are the support agent of a small kitchenware shop and help its clerks.
Look things up with your tools; never guess an order, a price or a policy.
Before a refund, find the order and read the policy on it. Amounts are in EUR.
Answer in short Markdown, with a table where there are several items.
"""

STAFF_ONLY_ABOVE = Decimal("200.00")
"""The largest refund, in EUR, that the policies let anybody at the desk make."""

if not os.environ.get("OPENAI_API_KEY"):
    set_tracing_disabled(True)  # There is nobody to send traces to.


@dataclass(frozen=True)
class Desk:
    """What tools know about the run they work for."""

    clerk_id: int | None
    is_staff: bool = False


def desk(run: Any) -> Desk:
    """Return the context of a run: ``AGENTIC_DJANGO_CONTEXT_FACTORY`` names this."""
    return Desk(clerk_id=run.owner_id, is_staff=run.owner is not None and run.owner.is_staff)


def agents() -> dict[str, Callable[[], Agent[Any]]]:
    """Return every agent of the shop by its key."""
    return {"support": support_agent}


def support_agent() -> Agent[Any]:
    """Return the support agent, on OpenAI's model where there is a key, else offline."""
    return Agent(
        name="Support agent",
        instructions=INSTRUCTIONS,
        model=os.environ.get("OPENAI_MODEL") if os.environ.get("OPENAI_API_KEY") else _offline(),
        tools=[
            find_order,
            search_products,
            check_stock,
            read_policy,
            refund_order,
            change_address,
        ],
    )


def _offline() -> DemoModel:
    return DemoModel(pause=getattr(settings, "SHOP_DEMO_MODEL_PAUSE", 0.04))


def _explain(ctx: RunContextWrapper[Any], error: Exception) -> str:
    """Return the shop's own message as the error that the model sees."""
    return str(error) if isinstance(error, ShopError) else default_tool_error_function(ctx, error)


@function_tool(failure_error_function=_explain)
def find_order(number: int) -> str:
    """Find an order: its state, lines, total, refunds and address.

    Args:
        number: The order's number, for example 1042.
    """
    return _text(Order.objects.with_everything().numbered(number).facts())


@function_tool(failure_error_function=_explain)
async def search_products(query: str) -> str:
    """Search the catalogue.

    Args:
        query: Words of the product's name, for example "blue mug".
    """
    found = [product.facts() async for product in Product.objects.matching(query)[:8]]
    if not found:
        raise ShopError(f"No product matches {query!r}.")
    return _text({"products": found})


@function_tool(failure_error_function=_explain)
async def check_stock(product: str) -> str:
    """Tell how many pieces of one product are in stock.

    Args:
        product: The product's full name or its SKU.
    """
    return _text((await Product.objects.one(product)).facts())


@function_tool(failure_error_function=_explain)
def read_policy(topic: str) -> str:
    """Read one of the shop's policies.

    Args:
        topic: For example "damaged goods", "returns" or "shipping".
    """
    return Policy.objects.about(topic).text


@editable
@asks("Refund {amount} EUR for order {number}?", action="Refund {amount}")
@function_tool(failure_error_function=_explain, needs_approval=True)
def refund_order(ctx: ToolContext[Any], number: int, amount: str) -> str:
    """Pay money back to an order's customer. This cannot be undone.

    Args:
        number: The order's number.
        amount: How much, in EUR, for example "48.00".
    """
    order = Order.objects.numbered(number)
    asker = ctx.context if isinstance(ctx.context, Desk) else Desk(clerk_id=None)
    if _money(amount) > STAFF_ONLY_ABOVE and not asker.is_staff:
        raise ShopError(f"Refunds above {STAFF_ONLY_ABOVE} need a member of staff.")
    refund = order.refund(_money(amount), reference=ctx.tool_call_id, clerk_id=asker.clerk_id)
    return _text({"order": number, "amount": str(refund.amount), "total": str(order.total)})


@function_tool(failure_error_function=_explain)
def change_address(number: int, address: str) -> str:
    """Send an order that is not shipped yet to another address.

    Args:
        number: The order's number.
        address: Street, house number and city.
    """
    order = Order.objects.numbered(number)
    order.redirect(address)
    return _text({"order": number, "address": order.address})


def _money(text: str) -> Decimal:
    try:
        return Decimal(text).quantize(Decimal("0.01"))
    except InvalidOperation:
        raise ShopError(f"{text!r} is not an amount; write it like 48.00.") from None


def _text(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=1, ensure_ascii=False)
