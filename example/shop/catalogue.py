"""Rows for the shop, the same for the same seed. Nobody in here is real."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from example.shop.models import Customer, Order, OrderLine, Policy, Product

COLOURS = ("Blue", "Red", "Green", "White")
KINDS = {
    "Mug": "12.00",
    "Bowl": "9.50",
    "Plate": "11.00",
    "Vase": "29.00",
    "Apron": "18.00",
    "Tea towel": "7.50",
    "Butter dish": "16.00",
    "Egg cup": "4.50",
    "Milk jug": "14.00",
    "Candle": "8.00",
}
SINGLES = {
    "Teapot": "24.00",
    "Coffee grinder": "59.00",
    "Bread knife": "34.00",
    "Kitchen scale": "42.00",
    "Tea sampler": "15.00",
    "Gift box": "6.00",
}
FIRST_NAMES = "Ada Bruno Chidi Dana Elif Femi Greta Hugo Ines Jonas Kaya Liam Mira Noor Otto Priya"
LAST_NAMES = "Holm Okafor Lindt Moreau Sato Weiss Yilmaz Novak"
STREETS = "Harbour Street,Mill Lane,Station Road,Church Row,Linden Alley"
CITIES = "Aldermouth,Brackenford,Coldharbour,Dunmere"
POLICIES = {
    "damaged goods": (
        "Damaged goods are refunded in full within 30 days of delivery. No return is needed.\n"
        "Refunds above 200.00 need a member of staff."
    ),
    "returns": (
        "Unused goods can be sent back within 30 days of delivery and are refunded on arrival.\n"
        "The customer pays for the way back. Refunds above 200.00 need a member of staff."
    ),
    "cancellations": "An order can be called off, at no cost, until it is shipped.",
    "shipping": (
        "Shipping is free from 30.00; below that it costs 3.90.\n"
        "Orders placed before noon leave the same day and arrive within 2 to 4 working days."
    ),
    "change of address": "The address of an order can be changed until it is shipped.",
    "gift cards": "Gift cards are valid for 3 years and cannot be paid out.",
    "warranty": "Appliances have a warranty of 2 years. Wear and tear is not covered.",
    "opening hours": "The help desk answers from Monday to Friday, 9:00 to 17:00.",
}
FIRST_ORDER = 1001
ORDERS = 250
CUSTOMERS = 80


@dataclass
class Catalogue:
    """Every row of a shop, not saved yet."""

    products: list[Product] = field(default_factory=list)
    customers: list[Customer] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    lines: list[OrderLine] = field(default_factory=list)
    policies: list[Policy] = field(default_factory=list)

    def save(self) -> None:
        """Insert all rows, one statement for each table."""
        Product.objects.bulk_create(self.products)
        Customer.objects.bulk_create(self.customers)
        Policy.objects.bulk_create(self.policies)
        Order.objects.bulk_create(self.orders)
        OrderLine.objects.bulk_create(self.lines)


def catalogue(seed: int, *, now: datetime) -> Catalogue:
    """Return the shop of a seed, with dates that end at ``now``."""
    dice = random.Random(seed)
    shop = Catalogue(products=list(_products(dice)), customers=list(_customers(dice)))
    shop.policies = [Policy(topic=topic, text=text) for topic, text in POLICIES.items()]
    for number in range(FIRST_ORDER, FIRST_ORDER + ORDERS):
        order = _order(dice, number, dice.choice(shop.customers), now=now)
        basket = dice.sample(shop.products, k=dice.randint(1, 4))
        shop.orders.append(order)
        shop.lines += [_line(order, product, dice.randint(1, 3)) for product in basket]
    _tell_the_story_of_order_1042(shop, now=now)
    return shop


def _products(dice: random.Random) -> Iterable[Product]:
    for kind, price in KINDS.items():
        for colour in COLOURS:
            yield _product(dice, f"{colour} {kind.lower()}", kind, price)
    for name, price in SINGLES.items():
        yield _product(dice, name, name, price)


def _product(dice: random.Random, name: str, kind: str, price: str) -> Product:
    sku = "-".join(word[:4].upper() for word in reversed(name.split()))
    stock = dice.choice((0, *range(3, 60)))
    return Product(sku=sku, name=name, kind=kind, price=Decimal(price), stock=stock)


def _customers(dice: random.Random) -> Iterable[Customer]:
    names = [f"{first} {last}" for first in FIRST_NAMES.split() for last in LAST_NAMES.split()]
    for name in dice.sample(names, k=CUSTOMERS):
        yield Customer(name=name, email=f"{name.lower().replace(' ', '.')}@example.com")


def _order(dice: random.Random, number: int, customer: Customer, *, now: datetime) -> Order:
    """Higher numbers are newer: the last ones were placed today and are still being packed."""
    age = timedelta(hours=(FIRST_ORDER + ORDERS - number) * 9 + dice.randint(0, 8))
    order = Order(number=number, customer=customer, ordered_at=now - age, address=_address(dice))
    if age > timedelta(days=4):
        order.status = Order.Status.DELIVERED
        order.delivered_at = order.ordered_at + timedelta(hours=dice.randint(48, 92))
    elif age > timedelta(days=1):
        order.status = Order.Status.SHIPPED
    if dice.random() < 0.05:
        order.status, order.delivered_at = Order.Status.CANCELLED, None
    return order


def _address(dice: random.Random) -> str:
    street, city = dice.choice(STREETS.split(",")), dice.choice(CITIES.split(","))
    return f"{dice.randint(1, 99)} {street}, {city}"


def _line(order: Order, product: Product, quantity: int) -> OrderLine:
    return OrderLine(order=order, product=product, quantity=quantity, price=product.price)


def _tell_the_story_of_order_1042(shop: Catalogue, *, now: datetime) -> None:
    """Two blue mugs and a teapot for 48.00, delivered three days ago."""
    order = next(order for order in shop.orders if order.number == 1042)
    product = {product.name: product for product in shop.products}
    order.status = Order.Status.DELIVERED
    order.ordered_at, order.delivered_at = now - timedelta(days=6), now - timedelta(days=3)
    shop.lines = [line for line in shop.lines if line.order is not order]
    shop.lines += [_line(order, product["Blue mug"], 2), _line(order, product["Teapot"], 1)]
