"""What the offline demo model says next, as a pure function of a conversation.

A few rules stand in for a language model: each knows one kind of question, which tools answer it
and in which order. Everything a rule tells comes out of the tools' results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

type Reply = str | list[Call]
type Facts = dict[str, Any]

HELP = """\
I am an **offline demo model**: a handful of rules in place of a language model, so that this \
example needs no key. The tools I call, and the rows they read and change, are real. With \
`OPENAI_API_KEY` set, a real model answers here instead.

You can ask me, for example:

- Where is order 1042?
- Order 1042 arrived broken. Can the customer have the money back?
- Do you have blue mugs in stock?
- What is your policy on returns?
- Change the address of order 1249 to 5 Mill Lane, Dunmere
"""
WHICH_ORDER = "Which order is it about? Please give me its number, for example 1042."
WHICH_PRODUCT = "What are you looking for? For example: blue mugs."
STATES = {
    "placed": "is being packed",
    "shipped": "is on its way",
    "cancelled": "was cancelled",
}
TOPICS = {
    r"damag|broken|crack": "damaged goods",
    r"cancel": "cancellations",
    r"ship|deliver": "shipping",
    r"address": "change of address",
    r"gift": "gift cards",
    r"warrant|guarantee": "warranty",
    r"hours|open": "opening hours",
    r"return|refund|send back|money back": "returns",
}
NOT_A_PRODUCT = set(
    "a an and any are available can cost costs do does for have how i in is it left looking many "
    "me much need of our price product products sell show some stock the there to we what which "
    "you your please search find still".split()
)


@dataclass(frozen=True)
class Call:
    """A tool to call."""

    name: str
    arguments: Facts


@dataclass(frozen=True)
class Result:
    """What a tool answered."""

    call: Call
    output: str

    @property
    def facts(self) -> Facts | None:
        """The output's facts, or None where it is prose: a policy, a refusal."""
        try:
            facts = json.loads(self.output)
        except ValueError:
            return None
        return facts if isinstance(facts, dict) else None


@dataclass(frozen=True)
class Turn:
    """A person's message, their earlier messages, and the tool results since."""

    text: str
    before: Sequence[str] = ()
    results: Sequence[Result] = ()

    def says(self, pattern: str) -> bool:
        """Tell whether the person's words hold a pattern."""
        return re.search(pattern, self.text, re.IGNORECASE) is not None

    def result(self, name: str) -> Result | None:
        """Return the last answer of a tool, or None."""
        return next((r for r in reversed(self.results) if r.call.name == name), None)

    @cached_property
    def orders(self) -> list[int]:
        """The orders that are meant: those named now, or else those named last."""
        for text in (self.text, *reversed(self.before)):
            if numbers := re.findall(r"(?:order|#)\s*(\d+)\b|\b(\d{4,6})\b(?![.,]\d)", text, re.I):
                return list(dict.fromkeys(int(a or b) for a, b in numbers))
        return []


def reply(turn: Turn) -> Reply:
    """Return the next tool calls, or the final answer in Markdown."""
    return next(rule(turn) for applies, rule in RULES if applies(turn))


def _refund(turn: Turn) -> Reply:
    """Find the order, read the policy, refund the amount that it allows."""
    if not turn.orders:
        return WHICH_ORDER
    if (found := turn.result("find_order")) is None:
        return [Call("find_order", {"number": turn.orders[0]})]
    if (order := found.facts) is None:
        return found.output
    if (policy := turn.result("read_policy")) is None:
        return [Call("read_policy", {"topic": _topic(turn.text)})]
    if reason := _against_refund(order, policy.output):
        return reason
    if (refund := turn.result("refund_order")) is None:
        return [Call("refund_order", {"number": order["order"], "amount": _amount(turn, order)})]
    return _refunded(order, refund, policy.output)


def _against_refund(order: Facts, policy: str) -> str | None:
    number, days = order["order"], order["days_since_delivery"]
    if order["refunded"] == order["total"]:
        return f"Order **{number}** has already been refunded in full: {order['total']} EUR."
    if order["status"] != "delivered":
        return f"Order **{number}** {_state(order)}, so there is nothing to refund yet."
    allowed = re.search(r"within (\d+) days", policy)
    if allowed and days > int(allowed[1]):
        return f"Order **{number}** {_state(order)}, which is too long ago.\n\n{_quoted(policy)}"
    return None


def _amount(turn: Turn, order: Facts) -> str:
    """Return the requested amount, or the amount that is not refunded yet."""
    if requested := re.search(r"\b\d+[.,]\d\d\b", turn.text):
        return requested[0].replace(",", ".")
    return str(Decimal(order["total"]) - Decimal(order["refunded"]))


def _refunded(order: Facts, refund: Result, policy: str) -> str:
    if refund.facts is None:
        return f"Nothing was refunded. {refund.output}"
    return (
        f"I'm sorry about that. I have refunded **{refund.facts['amount']} EUR** "
        f"of order {order['order']} to {order['customer']}.\n\n{_lines(order)}\n\n"
        f"{_quoted(policy)}"
    )


def _order(turn: Turn) -> Reply:
    """Find every order that is meant, at once."""
    if not turn.orders:
        return WHICH_ORDER
    if not turn.results:
        return [Call("find_order", {"number": number}) for number in turn.orders]
    return "\n\n".join(_told(result) for result in turn.results)


def _told(found: Result) -> str:
    if (order := found.facts) is None:
        return found.output
    refunded = "" if order["refunded"] == "0.00" else f" {order['refunded']} EUR was refunded."
    verb = "went" if order["status"] == "delivered" else "goes"
    return (
        f"Order **{order['order']}** for {order['customer']} {_state(order)}.{refunded}\n\n"
        f"{_lines(order)}\n\nIt {verb} to {order['address']}."
    )


def _address(turn: Turn) -> Reply:
    """Send the order elsewhere."""
    if not turn.orders:
        return WHICH_ORDER
    address = re.search(r".*\bto:?\s+(.*\w)", turn.text, re.IGNORECASE)
    if address is None:
        return f"Where shall order {turn.orders[0]} go? Say: change its address to …"
    if (changed := turn.result("change_address")) is None:
        return [Call("change_address", {"number": turn.orders[0], "address": address[1]})]
    if changed.facts is None:
        return changed.output
    return f"Order **{changed.facts['order']}** now goes to {changed.facts['address']}."


def _policy(turn: Turn) -> Reply:
    """Read the shop's policies and quote them."""
    if (policy := turn.result("read_policy")) is None:
        return [Call("read_policy", {"topic": _topic(turn.text)})]
    if policy.output.startswith("There is no policy"):
        return policy.output
    topic = policy.call.arguments["topic"]
    return f"Our policy on **{topic}** says:\n\n{_quoted(policy.output)}"


def _product(turn: Turn) -> Reply:
    """Search the catalogue; where one product is left, look at its stock."""
    words = re.findall(r"[\w-]+", turn.text.lower().replace("'s", ""))
    query = " ".join(word for word in words if word not in NOT_A_PRODUCT)
    if not query:
        return WHICH_PRODUCT
    if (found := turn.result("search_products")) is None:
        return [Call("search_products", {"query": query})]
    if found.facts is None:
        return f"{found.output} Try another word, for example: mug."
    products = found.facts["products"]
    if len(products) > 1:
        return f"We have these:\n\n{_table('Product', 'EUR', 'In stock', rows=_shelf(products))}"
    if (stock := turn.result("check_stock")) is None:
        return [Call("check_stock", {"product": products[0]["name"]})]
    return _in_stock(stock)


def _in_stock(stock: Result) -> str:
    if (product := stock.facts) is None:
        return stock.output
    if not product["stock"]:
        return f"**{product['name']}** ({product['price']} EUR) is sold out."
    return f"**{product['name']}** costs {product['price']} EUR; {product['stock']} are in stock."


def _shelf(products: Iterable[Facts]) -> Iterable[tuple[str, str, object]]:
    return ((p["name"], p["price"], p["stock"] or "sold out") for p in products)


def _help(turn: Turn) -> Reply:
    return HELP


def _greeting(turn: Turn) -> Reply:
    return "You're welcome." if turn.says(r"thank") else f"Hello! {HELP}"


def _state(order: Facts) -> str:
    if order["status"] == "delivered":
        days = order["days_since_delivery"]
        ago = {0: "today", 1: "yesterday"}.get(days, f"{days} days ago")
        return f"was delivered {ago}"
    return STATES[order["status"]]


def _topic(text: str) -> str:
    topics = (topic for word, topic in TOPICS.items() if re.search(word, text, re.IGNORECASE))
    return next(topics, re.sub(r".*polic(?:y|ies)\s+(?:on|for|about)\s+", "", text).strip(" ?.!"))


def _lines(order: Facts) -> str:
    rows = [(line["item"], line["quantity"], line["paid"]) for line in order["lines"]]
    total = ("**Total**", "", f"**{order['total']}**")
    return _table("Item", "Quantity", "Paid, EUR", rows=[*rows, total])


def _table(*heads: str, rows: Iterable[Iterable[object]]) -> str:
    ruler = ["---", *("--:" for _ in heads[1:])]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heads, ruler, *rows))


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _about(*patterns: str) -> Callable[[Turn], bool]:
    """Return a test that holds where every pattern is found in the person's words."""
    return lambda turn: all(turn.says(pattern) for pattern in patterns)


RULES: Sequence[tuple[Callable[[Turn], bool], Callable[[Turn], Reply]]] = (
    (
        _about(r"^\W*(hi|hello|hey|good (morning|day|evening)|thanks|thank you)\b.{0,20}$"),
        _greeting,
    ),
    (_about(r"\bhelp\b|what can you|who are you|are you (a|an|real)"), _help),
    (_about(r"policy|policies"), _policy),
    (_about(r"address", r"change|send|redirect|move"), _address),
    (_about(r"refund|money back|broken|damaged|reimburse|pay back"), _refund),
    (_about(r"\border\b|#\d|\b\d{4,6}\b"), _order),
    (_about("|".join(TOPICS)), _policy),
    (_about(r"stock|sell|price|cost|availab|product|looking for|have|need|any|how many"), _product),
    (lambda turn: True, _help),
)
