"""Fill the shop."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction
from django.utils import timezone

from example.shop.catalogue import catalogue
from example.shop.models import Order


class Command(BaseCommand):
    """Fill an empty shop with a few hundred rows; leave a filled one as it is."""

    help = "Fills the shop with orders, products and policies: the same ones for the same seed."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add ``--seed``."""
        parser.add_argument("--seed", type=int, default=1042, help="What chance starts from.")

    def handle(self, *, seed: int, **options: Any) -> None:
        """Write all rows in one transaction, or say why nothing is to be done."""
        if orders := Order.objects.count():
            self.stdout.write(f"The shop has {orders} orders already; nothing was changed.")
            return
        shop = catalogue(seed, now=timezone.now())
        with transaction.atomic():
            shop.save()
        self.stdout.write(
            f"The shop has {len(shop.orders)} orders from {len(shop.customers)} customers, "
            f"{len(shop.products)} products and {len(shop.policies)} policies."
        )
