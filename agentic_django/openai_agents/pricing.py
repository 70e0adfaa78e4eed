"""Computes the cost of a model call from the prices in ``genai-prices``, if that is installed."""

from __future__ import annotations

from typing import Any

from agents.usage import Usage

__all__ = ["cost"]


def cost(model: Any, usage: Usage) -> dict[str, float]:
    """Return ``{"cost_usd": …}`` for a call, or an empty dict if the price is not known.

    ``model`` is the SDK's model object. Its name may start with providers:
    ``litellm/openai/gpt-5``.
    """
    name = getattr(model, "model", None)
    if not isinstance(name, str):
        return {}
    try:
        import genai_prices  # noqa: PLC0415 - an extra
    except ImportError:
        return {}
    *_providers, reference = name.split("/")
    cached = usage.input_tokens_details.cached_tokens or 0
    counts = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=cached or None,
    )
    try:
        price = genai_prices.calc_price(counts, model_ref=reference)
    except (LookupError, ValueError):
        return {}
    return {"cost_usd": float(price.total_price)}
