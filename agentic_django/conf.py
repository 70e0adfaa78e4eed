"""Typed access to the settings ``AGENTIC_DJANGO_*``.

Each access reads Django's settings, so ``override_settings`` works.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from django.conf import settings as django_settings
from django.utils.module_loading import import_string
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from agentic_django.exceptions import BadSetting

__all__ = ["PREFIX", "CleanupPolicy", "Rate", "load", "settings"]

PREFIX = "AGENTIC_DJANGO_"
_PERIODS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BRANCH = re.compile(r"str|int|callable|.*\[.*|.*\(.*")
"""Pydantic's names for the branches of a union, which do not help a reader."""


class Rate(BaseModel):
    """A limit of ``count`` runs in each window of ``seconds`` seconds."""

    model_config = ConfigDict(frozen=True)
    count: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Parse ``"20/m"``: a count, a slash and s, m, h or d; raise ValueError otherwise."""
        match = re.fullmatch(r"([1-9]\d*)/([smhd])", text)
        if match is None:
            raise ValueError("use a rate such as '20/m' (s, m, h or d), or None for no limit")
        return cls(count=int(match[1]), seconds=_PERIODS[match[2]])


type Days = Annotated[float, Ge(0), Le(36_500)]
type Finished = Literal["completed", "failed", "cancelled", "timed_out"]


class CleanupPolicy(BaseModel):
    """The rows that ``agentic_django_cleanup`` deletes; None keeps all rows of a kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    events_days: Days | None = None
    runs_days: Days | None = None
    runs_statuses: Sequence[Finished] = ("completed", "failed", "cancelled", "timed_out")
    sessions_days: Days | None = None
    sessions_require_empty: bool = True
    batch_size: Annotated[int, Gt(0)] = 500


type Hook = str | Callable[..., Any]
type Seconds = Annotated[float, Gt(0), Le(86_400 * 365)]
type PositiveInt = Annotated[int, Gt(0)]


class Option[T]:
    """One setting: its type, its default, and the hint for an invalid value."""

    def __init__(self, kind: Any, default: T, hint: str) -> None:
        self.kind = kind
        self.default = default
        self.hint = hint

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = PREFIX + name

    def __get__(self, instance: object, owner: type) -> T:
        value: T = getattr(django_settings, self.name, self.default)
        return value

    def problem(self) -> str | None:
        """Return why the current value is invalid, or None if it is valid."""
        try:
            # Strict, because the app uses the value itself, not one that pydantic converted.
            TypeAdapter(self.kind).validate_python(self.__get__(None, Option), strict=True)
        except ValidationError as error:
            sentences = []
            for detail in error.errors():
                names = [str(part) for part in detail["loc"]]
                where = ".".join(name for name in names if not _BRANCH.fullmatch(name))
                message = detail["msg"].removeprefix("Value error, ")
                sentences.append(f"{where}: {message}" if where else message)
            return "; ".join(dict.fromkeys(sentences))
        return None


class Settings:
    """All settings of the app, with their types, defaults and hints."""

    AGENT_REGISTRY = Option[str | Sequence[str] | None](
        str | Sequence[str] | None,
        None,
        "The dotted path of a callable that returns {key: factory}, or a list of such paths.",
    )
    DEFAULT_AGENT_KEY = Option[str](str, "default", "The key of a registered agent.")
    AGENT_ACCESS = Option[Hook | None](
        Hook | None, None, "A callable (request, agent_key) -> bool, or its dotted path."
    )
    TASK_BACKEND = Option[str](str, "default", "An alias in the TASKS setting.")
    QUEUES = Option[Mapping[str, str]](
        Mapping[str, str],
        {"*": "default"},
        'A dict {agent key: queue}; "*" stands for all other agents.',
    )
    DEFAULT_RUN_OPTIONS = Option[Mapping[str, Any]](
        Mapping[str, Any], {}, "A dict of run options, for example {'max_turns': 20}."
    )
    CLIENT_RUN_OPTIONS = Option[Sequence[str]](
        Sequence[str], ("max_turns",), "A list of run options that clients may set."
    )
    CLIENT_INPUT_ITEMS = Option[Sequence[str]](
        Sequence[str],
        ("user",),
        "A list of roles and types of input items that clients may send, for example ['user'].",
    )
    CONTEXT_FACTORY = Option[Hook | None](
        Hook | None, None, "A callable (run) -> context for tools, or its dotted path."
    )
    COMPACT_HISTORY = Option[Hook | None](
        Hook | None, None, "A callable (session, items) -> items or None, or its dotted path."
    )
    DEFAULT_MODEL = Option[str | None](
        str | None, None, "The name of a model, with a provider prefix if it needs one, or None."
    )
    STEP_MODULES = Option[Sequence[str]](
        Sequence[str],
        (),
        "A list of dotted paths of modules whose functions may be submitted as steps.",
    )
    EVENT_VISIBILITY = Option[Mapping[str, str]](
        Mapping[str, Literal["user", "debug", "internal"]],
        {},
        "A dict {event type: 'user', 'debug' or 'internal'}.",
    )
    SHOW_DEBUG_EVENTS = Option[bool](bool, False, "True or False.")
    ENABLE_EVENTS = Option[bool](bool, True, "True or False.")
    RATE_LIMIT = Option[str | None](
        Annotated[str, AfterValidator(Rate.parse)] | None,
        "20/m",
        "A rate such as '20/m', or None.",
    )
    REFUSED_RATE_LIMIT = Option[str | None](
        Annotated[str, AfterValidator(Rate.parse)] | None,
        "60/m",
        "A rate such as '60/m', or None.",
    )
    MAX_INPUT_BYTES = Option[int](PositiveInt, 262_144, "A positive number of bytes.")
    MAX_INPUT_ITEMS = Option[int](PositiveInt, 100, "A positive number of items.")
    CLEANUP_POLICY = Option[Mapping[str, Any]](
        CleanupPolicy, {}, "A dict with entries such as events_days, runs_days and sessions_days."
    )
    STARTUP_RECOVERY = Option[str](
        Literal["ignore", "fail", "requeue"], "requeue", "One of 'ignore', 'fail', 'requeue'."
    )
    CONCURRENCY_LIMIT = Option[int | Mapping[str, int] | None](
        PositiveInt | Mapping[str, PositiveInt] | None,
        None,
        'The maximum number of running runs, or a dict {agent key: number} with "*" for all agents '
        "together, or None.",
    )
    RUN_TIMEOUT_SECONDS = Option[float](Seconds, 900, "A positive number of seconds.")
    LEASE_SECONDS = Option[float](Seconds, 60, "A positive number of seconds.")
    MAX_ATTEMPTS = Option[int | Mapping[str, int]](
        PositiveInt | Mapping[str, PositiveInt],
        4,
        'A positive number, or a dict {agent key: number}; "*" stands for all other agents.',
    )
    CLASSIFY_ERROR = Option[Hook | None](
        Hook | None, None, "A callable (exception) -> runtime.RetryDecision, or its dotted path."
    )
    APPROVERS = Option[Hook | None](
        Hook | None, None, "A callable (user, approval) -> bool, or its dotted path."
    )
    APPROVAL_TTL = Option[float | None](
        Seconds | None, None, "The seconds after which an undecided request is rejected, or None."
    )
    DATABASE = Option[str](str, "default", "An alias in the DATABASES setting.")
    POLL_SECONDS = Option[float](
        Seconds, 1.0, "The interval at which an unfinished fragment polls, in seconds."
    )
    STREAM_SECONDS = Option[float](Seconds, 300.0, "The duration of one open stream, in seconds.")
    WAKEUP = Option[str](
        Literal["auto", "postgres", "redis", "poll"],
        "auto",
        "One of 'auto', 'postgres', 'redis', 'poll'.",
    )
    REDIS_URL = Option[str | None](
        str | None, None, "A URL such as 'redis://127.0.0.1:6379/0', or None."
    )
    BASE_TEMPLATE = Option[str](
        str, "agentic_django/base.html", "The template that the app's pages extend."
    )

    @classmethod
    def options(cls) -> dict[str, Option[Any]]:
        """Return every option by its full name, ``AGENTIC_DJANGO_…``."""
        return {o.name: o for o in vars(cls).values() if isinstance(o, Option)}

    @property
    def rate(self) -> Rate | None:
        """The parsed rate limit, or None."""
        return Rate.parse(self.RATE_LIMIT) if self.RATE_LIMIT else None

    @property
    def refused_rate(self) -> Rate | None:
        """The parsed rate limit of refused requests, or None."""
        return Rate.parse(self.REFUSED_RATE_LIMIT) if self.REFUSED_RATE_LIMIT else None

    @property
    def cleanup(self) -> CleanupPolicy:
        """The validated retention policy."""
        return CleanupPolicy.model_validate(self.CLEANUP_POLICY)


settings = Settings()


def load(hook: Hook) -> Callable[..., Any]:
    """Return the callable that a setting names; raise BadSetting if it does not exist."""
    if callable(hook):
        return hook
    try:
        target = import_string(hook.replace(":", "."))
    except ImportError as error:
        raise BadSetting(f"Cannot import {hook!r}: {error}.") from error
    if not callable(target):
        raise BadSetting(f"{hook!r} is not callable.")
    return target  # type: ignore[no-any-return]
