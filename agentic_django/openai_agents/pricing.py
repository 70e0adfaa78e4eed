"""Computes the cost of a model call with the package ``genai-prices``, if it is installed."""

from __future__ import annotations

from typing import Any

from agents.usage import Usage

from agentic_django.signals import logger

__all__ = ["cost"]


def cost(model: Any, usage: Usage) -> dict[str, float]:
    """Return ``{"cost_usd": …}`` for a call, or an empty dict if the price is unknown.

    ``model`` is the SDK's model object. Its name may have provider prefixes:
    ``litellm/openai/gpt-5``.
    """
    if not usage.input_tokens and not usage.output_tokens:  # The provider sent no counts.
        return {}
    try:
        return _priced(model, usage)
    except (LookupError, ValueError):
        return {}
    except Exception:  # noqa: BLE001 - an answer must not fail because its price is not known
        logger.warning("Cannot compute the cost of a model call.", exc_info=True)
        return {}


def _priced(model: Any, usage: Usage) -> dict[str, float]:
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
    price = genai_prices.calc_price(counts, model_ref=reference)
    return {"cost_usd": float(price.total_price)}
