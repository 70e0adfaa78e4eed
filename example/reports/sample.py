"""A file to try it with: a year of sales, the same ones each time, with a few bad rows."""

from __future__ import annotations

import csv
import io
from datetime import date, timedelta
from functools import cache
from random import Random

from example.reports.sheets import COLUMNS

NAME = "sample.csv"
ROWS = 4000
FIRST_DAY = date(2025, 11, 1)
SEASON = (1.4, 2.0, 0.6, 0.5, 0.7, 0.9, 1.0, 0.9, 0.7, 0.8, 1.0, 1.1)
"""How much is sold in each month, from November."""

REGIONS = {"North": 5, "South": 3, "East": 2, "West": 4, "Islands": 1}
PRODUCTS = {
    "Blue mug": "12.00",
    "Teapot": "24.00",
    "Bread knife": "31.50",
    "Cast iron pan": "58.00",
    "Chopping board": "19.90",
    "Espresso cups, set of 4": "36.00",
    "Linen apron": "27.00",
    "Pepper mill": "22.40",
    "Salad bowl": "29.00",
    "Whisk": "8.50",
}
BAD = {
    211: ("date", "31.12.2025"),
    874: ("quantity", "two"),
    1390: ("price", "n/a"),
    1733: ("region", ""),
    2048: ("quantity", "-3"),
    2611: ("date", ""),
    3307: ("quantity", "1.5"),
    3902: ("product", ""),
}
"""Rows that cannot be used, as every real file has them."""


@cache
def sample(seed: int = 1042) -> bytes:
    """Return the file."""
    chance = Random(seed)
    days = sorted(chance.choices(range(365), weights=[_weight(day) for day in range(365)], k=ROWS))
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for number, day in enumerate(days):
        row = _row(chance, FIRST_DAY + timedelta(days=day))
        name, cell = BAD.get(number, ("date", row["date"]))
        rows.writerow({**row, name: cell})
    return text.getvalue().encode()


def _weight(day: int) -> float:
    return SEASON[((FIRST_DAY + timedelta(days=day)).month - FIRST_DAY.month) % 12]


def _row(chance: Random, day: date) -> dict[str, str]:
    (region,) = chance.choices(list(REGIONS), weights=list(REGIONS.values()))
    product, price = chance.choice(list(PRODUCTS.items()))
    quantity = chance.choice((1, 1, 1, 2, 2, 3, 4, 6))
    cells = (day.isoformat(), region, product, str(quantity), price)
    return dict(zip(COLUMNS, cells, strict=True))
