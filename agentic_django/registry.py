"""The registered agents: factories by agent key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.translation import gettext as _

from agentic_django.conf import PREFIX, load, settings
from agentic_django.exceptions import BadSetting, UnknownAgent, suggestion

__all__ = ["duplicates", "get", "keys", "register", "unknown_agent"]

type Factory = Callable[[], Any]


@dataclass
class _Registry:
    """Factories from ``register``, and from the setting (None until it is loaded)."""

    registered: dict[str, Factory] = field(default_factory=dict)
    registered_again: set[str] = field(default_factory=set)
    loaded: dict[str, Factory] | None = None
    loaded_again: set[str] = field(default_factory=set)


_registry = _Registry()


def register(key: str, factory: Factory) -> None:
    """Register an agent's factory; meant for ``AppConfig.ready()``.

    ``factory`` takes no arguments and returns an ``agents.Agent``, or other work that can be
    registered. It is called once for each attempt of a run. If a key is registered twice, the first
    factory stays, and the system check ``agentic_django.E003`` reports the key.

    Raises BadSetting for an object that is not a factory.
    """
    if not callable(factory):
        raise BadSetting(_not_a_factory(key, factory))
    if key in _registry.registered:
        _registry.registered_again.add(key)
        return
    _registry.registered[key] = factory


def keys() -> list[str]:
    """Return the keys of all registered agents, sorted."""
    return sorted(_all())


def duplicates() -> list[str]:
    """Return the keys that are registered more than once."""
    _all()
    both = _registry.registered.keys() & (_registry.loaded or {}).keys()
    return sorted(_registry.registered_again | _registry.loaded_again | both)


def get(key: str) -> Factory:
    """Return the factory of a key; raise UnknownAgent, which suggests a similar key."""
    try:
        return _all()[key]
    except KeyError:
        raise unknown_agent(key, keys()) from None


def unknown_agent(key: str, known: Sequence[str]) -> UnknownAgent:
    """Return the error for a key that is not registered; it suggests one of the known keys."""
    shown = key[:255]  # The key may come from a client. Keys of this length cannot be stored.
    text = _("Unknown agent %(key)r.") % {"key": shown}
    return UnknownAgent(f"{text} {suggestion(shown, known)}")


def _all() -> dict[str, Factory]:
    if _registry.loaded is None:
        _registry.loaded = _load()
    return {**_registry.loaded, **_registry.registered}


def _load() -> dict[str, Factory]:
    setting = settings.AGENT_REGISTRY or ()
    loaded: dict[str, Factory] = {}
    for path in [setting] if isinstance(setting, str) else setting:
        entries = load(path)()
        if not isinstance(entries, Mapping):
            kind = type(entries).__name__
            hint = " Does it lack a return statement?" if entries is None else ""
            raise BadSetting(f"{path!r} returned {kind}, not a dict of factories.{hint}")
        for key, factory in entries.items():
            if not callable(factory):
                raise BadSetting(f"{path!r}: {_not_a_factory(key, factory)}")
            if key in loaded:
                _registry.loaded_again.add(key)
            loaded.setdefault(key, factory)
    return loaded


def _not_a_factory(key: str, given: Any) -> str:
    return (
        f"the factory of {key!r} is not callable: it is {type(given).__name__}. Register a "
        "function that returns the agent, for example lambda: agent."
    )


@receiver(setting_changed, dispatch_uid="agentic_django.registry")
def _reload(*, setting: str, **_: Any) -> None:
    if setting == f"{PREFIX}AGENT_REGISTRY":
        _registry.loaded = None
        _registry.loaded_again.clear()
