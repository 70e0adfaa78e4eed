"""What the offline demo model makes of a report's figures."""

from __future__ import annotations

import json
from typing import Any

from example.shop.demo_replies import Turn


def summary(turn: Turn) -> str:
    """Write sentences about the figures in the input."""
    totals: dict[str, Any] = json.loads(turn.text)
    months, regions, products = (totals[name] for name in ("months", "regions", "products"))
    best, weakest = max(months, key=_revenue), min(months, key=_revenue)
    share = round(100 * _revenue(regions[0]) / (float(totals["revenue"]) or 1))
    return (
        f"Revenue came to **{_money(totals)}** from {totals['sales']:,} sales, "
        f"{months[0]['name']} to {months[-1]['name']}.\n\n"
        f"- **{best['name']}** was the best month with {_money(best)}, "
        f"{weakest['name']} the weakest with {_money(weakest)}.\n"
        f"- **{regions[0]['name']}** leads with {share} % of the revenue.\n"
        f"- **{products[0]['name']}** brought in the most, {_money(products[0])}."
    )


def _revenue(part: dict[str, Any]) -> float:
    return float(part["revenue"])


def _money(part: dict[str, Any]) -> str:
    return f"{_revenue(part):,.2f}"
