"""The shop's rows, and the few things that may be done with them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q, Sum
from django.utils import timezone

CENT = Decimal("0.01")


class ShopError(Exception):
    """The shop cannot do this. The customer reads the message."""


class ProductQuerySet(models.QuerySet["Product"]):
    """Products."""

    def matching(self, query: str) -> ProductQuerySet:
        """Products whose name, kind or SKU holds every word of the query; plurals are fine."""
        found = self
        for word in query.split():
            stem = word.removesuffix("s")
            found = found.filter(
                Q(name__icontains=stem) | Q(kind__icontains=stem) | Q(sku__iexact=word)
            )
        return found

    async def one(self, name: str) -> Product:
        """Return the product of this name or SKU; raise ShopError if none or several match."""
        if exact := await self.filter(Q(sku__iexact=name) | Q(name__iexact=name)).afirst():
            return exact
        found = [product async for product in self.matching(name)[:6]]
        if not found:
            raise ShopError(f"There is no product like {name!r}.")
        if len(found) > 1:
            names = ", ".join(product.name for product in found)
            raise ShopError(f"Several products are like {name!r}: {names}. Name one of them.")
        return found[0]


class Product(models.Model):
    """Something the shop sells."""

    sku = models.CharField("SKU", max_length=20, unique=True)
    name = models.CharField(max_length=80)
    kind = models.CharField(max_length=40)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.PositiveIntegerField(default=0)

    objects = ProductQuerySet.as_manager()

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def facts(self) -> dict[str, Any]:
        """Return the facts about this product that an agent may reveal."""
        return {
            "sku": self.sku,
            "name": self.name,
            "price": str(self.price),
            "stock": self.stock,
        }


class Customer(models.Model):
    """A customer of the shop."""

    name = models.CharField(max_length=80)
    email = models.EmailField(unique=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class OrderQuerySet(models.QuerySet["Order"]):
    """Orders."""

    def with_everything(self) -> OrderQuerySet:
        """Orders whose facts need no further query."""
        return self.select_related("customer").prefetch_related("lines__product", "refunds")

    def numbered(self, number: int) -> Order:
        """Return the order of this number; raise ShopError if there is none."""
        try:
            return self.get(number=number)
        except self.model.DoesNotExist:
            raise ShopError(f"There is no order {number}. Please check the number.") from None


class Order(models.Model):
    """What a customer bought at one time, and where it goes."""

    class Status(models.TextChoices):
        """Where an order stands."""

        PLACED = "placed"  # Paid; packing makes it shipped.
        SHIPPED = "shipped"  # On its way; arriving makes it delivered.
        DELIVERED = "delivered"  # With the customer, for good.
        CANCELLED = "cancelled"  # Called off before it was shipped, for good.

    number = models.PositiveIntegerField(unique=True)
    customer = models.ForeignKey(Customer, models.PROTECT, related_name="orders")
    status = models.CharField(max_length=10, choices=Status, default=Status.PLACED)
    address = models.CharField(max_length=200)
    ordered_at = models.DateTimeField(default=timezone.now)
    delivered_at = models.DateTimeField(null=True, blank=True)

    objects = OrderQuerySet.as_manager()

    class Meta:
        ordering = ("-number",)

    def __str__(self) -> str:
        return f"Order {self.number}"

    @property
    def total(self) -> Decimal:
        """What the customer paid."""
        return sum((line.paid for line in self.lines.all()), Decimal(0)).quantize(CENT)

    @property
    def refunded(self) -> Decimal:
        """What the customer got back."""
        return sum((refund.amount for refund in self.refunds.all()), Decimal(0)).quantize(CENT)

    def facts(self) -> dict[str, Any]:
        """Return the facts about this order that an agent may reveal."""
        return {
            "order": self.number,
            "customer": self.customer.name,
            "status": self.status,
            "ordered": self.ordered_at.date().isoformat(),
            "delivered": self.delivered_at and self.delivered_at.date().isoformat(),
            "days_since_delivery": self.delivered_at and (timezone.now() - self.delivered_at).days,
            "address": self.address,
            "lines": [line.facts() for line in self.lines.all()],
            "total": str(self.total),
            "refunded": str(self.refunded),
        }

    @transaction.atomic
    def refund(self, amount: Decimal, *, reference: str, clerk_id: int | None = None) -> Refund:
        """Pay back part of this order. The same reference pays once, however often it comes."""
        Order.objects.select_for_update().get(pk=self.pk)
        if earlier := Refund.objects.filter(reference=reference).first():
            return earlier
        left = self.total - (self.refunds.aggregate(sum=Sum("amount"))["sum"] or 0)
        if not left:
            raise ShopError(f"Order {self.number} has already been refunded in full.")
        if not 0 < amount <= left:
            raise ShopError(f"Order {self.number} can be refunded by 0.01 to {left}, not {amount}.")
        return self.refunds.create(amount=amount, reference=reference, clerk_id=clerk_id)

    def redirect(self, address: str) -> None:
        """Send this order elsewhere; raise ShopError once it has left the house."""
        placed = Order.objects.filter(pk=self.pk, status=Order.Status.PLACED)
        if not placed.update(address=address):
            raise ShopError(f"Order {self.number} is {self.status}: its address stays as it is.")
        self.address = address


class OrderLine(models.Model):
    """One product of an order."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, models.PROTECT, related_name="lines")
    quantity = models.PositiveIntegerField(default=1)
    price = models.DecimalField("price of one", max_digits=8, decimal_places=2)

    def __str__(self) -> str:
        return f"{self.quantity} × {self.product}"

    @property
    def paid(self) -> Decimal:
        """The price of all pieces."""
        return self.quantity * self.price

    def facts(self) -> dict[str, Any]:
        """Return the facts about this order line that an agent may reveal."""
        return {"item": self.product.name, "quantity": self.quantity, "paid": str(self.paid)}


class Refund(models.Model):
    """Money that went back to a customer."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="refunds")
    amount = models.DecimalField(max_digits=8, decimal_places=2)
    reference = models.CharField(max_length=200, unique=True)
    clerk = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("-created_at",)
        constraints = (
            models.CheckConstraint(condition=Q(amount__gt=0), name="shop_refund_is_positive"),
        )

    def __str__(self) -> str:
        return f"{self.amount} for {self.order}"


class PolicyQuerySet(models.QuerySet["Policy"]):
    """Policies."""

    def about(self, topic: str) -> Policy:
        """Return the policy on a topic; raise ShopError, which names the topics, if none is."""
        near = Q()
        for word in topic.split():
            near |= Q(topic__icontains=word.removesuffix("s")) if len(word) > 3 else Q()
        exact = self.filter(topic__iexact=topic.strip()).first()
        if policy := exact or (near and self.filter(near).first()):
            return policy
        known = ", ".join(self.values_list("topic", flat=True))
        raise ShopError(f"There is no policy on {topic!r}. There is one on each of: {known}.")


class Policy(models.Model):
    """What the shop promises, in its own words."""

    topic = models.CharField(max_length=60, unique=True)
    text = models.TextField()

    objects = PolicyQuerySet.as_manager()

    class Meta:
        ordering = ("topic",)
        verbose_name_plural = "policies"

    def __str__(self) -> str:
        return self.topic
