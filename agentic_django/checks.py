"""System checks that find wrong settings and say how to fix them. No check runs an agent."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import agents
from django.apps import apps
from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, register
from django.db import Error, router
from django.tasks import task_backends
from django.template import TemplateDoesNotExist
from django.template.loader import get_template

from agentic_django import registry, validation
from agentic_django.conf import PREFIX, Settings, load, settings
from agentic_django.engine import approvals
from agentic_django.exceptions import BadSetting
from agentic_django.models import AgentRun, ToolApproval
from agentic_django.openai_agents import runner
from agentic_django.runtime import inline
from agentic_django.steps import submitted

TAG = "agentic_django"
"""Run these checks alone with ``manage.py check --tag agentic_django``."""

_RQ_SECONDS = 180
"""RQ's default timeout for jobs."""


def _error(number: int, message: str, hint: str) -> CheckMessage:
    return checks.Error(message, hint=hint, id=f"agentic_django.E{number:03}")


def _warning(number: int, message: str, hint: str) -> CheckMessage:
    return checks.Warning(message, hint=hint, id=f"agentic_django.W{number:03}")


def _is_sound(name: str) -> bool:
    """Whether a setting has a valid value. E001 reports an invalid one."""
    return Settings.options()[PREFIX + name].problem() is None


@register(TAG)
def check_values(**_: Any) -> Iterator[CheckMessage]:
    """E001: a setting has an invalid value."""
    for name, option in Settings.options().items():
        if problem := option.problem():
            yield _error(1, f"{name} is invalid: {problem}.", f"Expected: {option.hint}")


@register(TAG)
def check_names(**_: Any) -> Iterator[CheckMessage]:
    """W001: the app does not have a setting of this name."""
    known = Settings.options()
    for name in dir(django_settings):
        if name.startswith(PREFIX) and name not in known:
            yield _warning(1, f"Unknown setting {name}.", _nearest(name, list(known)))


def _nearest(name: str, known: list[str]) -> str:
    bare = [option.removeprefix(PREFIX) for option in known]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1)
    if near:
        return f"Did you mean {PREFIX}{near[0]}?"
    return f"Remove it. The settings are: {', '.join(known)}."


# Agents


@register(TAG)
def check_registry(**_: Any) -> Iterator[CheckMessage]:
    """E002, E003, E004, W002, W003: the registered agents."""
    if not _is_sound("AGENT_REGISTRY"):
        return
    try:
        keys, doubled = registry.keys(), registry.duplicates()
    except BadSetting as error:
        yield _error(2, f"{PREFIX}AGENT_REGISTRY: {error}", _REGISTRY_HINT)
        return
    for key in doubled:
        hint = "Rename or remove one of them. Until then, only the first one is used."
        yield _error(3, f"The agent key {key!r} is registered more than once.", hint)
    yield from _default_agent(keys)


_REGISTRY_HINT = (
    "Name callables that take no arguments and return {key: factory}, "
    "for example 'shop.agents.registry' or 'shop.agents:registry'."
)


def _default_agent(keys: list[str]) -> Iterator[CheckMessage]:
    name = f"{PREFIX}DEFAULT_AGENT_KEY"
    if not keys:
        hint = f"Set {PREFIX}AGENT_REGISTRY. {_REGISTRY_HINT}"
        yield _warning(2, "No agent is registered.", hint)
    elif not _is_sound("DEFAULT_AGENT_KEY") or settings.DEFAULT_AGENT_KEY in keys:
        return
    elif hasattr(django_settings, name):
        message = f"{name} is {settings.DEFAULT_AGENT_KEY!r}, which is not registered."
        yield _error(4, message, f"Set it to one of: {', '.join(keys)}.")
    else:
        message = f"No agent is registered as {settings.DEFAULT_AGENT_KEY!r}, the default key."
        hint = f"Set {name} to one of: {', '.join(keys)}. Or name the agent of each run."
        yield _warning(3, message, hint)


@register(TAG)
def check_hooks(**_: Any) -> Iterator[CheckMessage]:
    """E005: a setting names a callable that does not exist."""
    for name, option in Settings.options().items():
        if name.removeprefix(PREFIX) not in _HOOKS or option.problem():
            continue
        hook = getattr(django_settings, name, option.default)
        try:
            if hook is not None:
                load(hook)
        except BadSetting as error:
            yield _error(5, f"{name}: {error}", option.hint)


_HOOKS = ("AGENT_ACCESS", "APPROVERS", "CONTEXT_FACTORY", "CLASSIFY_ERROR", "COMPACT_HISTORY")


@register(TAG)
def check_step_modules(**_: Any) -> Iterator[CheckMessage]:
    """E012: the setting for steps names a module that cannot be imported."""
    if not _is_sound("STEP_MODULES"):
        return
    for module in settings.STEP_MODULES:
        try:
            import_module(module)
        except (ImportError, ValueError, TypeError) as error:  # As for "" and ".steps".
            message = f"{PREFIX}STEP_MODULES has {module!r}, which cannot be imported: {error}."
            yield _error(12, message, "Use the dotted path of a module, not of a function in it.")


@register(TAG)
def check_run_options(**_: Any) -> Iterator[CheckMessage]:
    """E013: the default run options have one that the Agents SDK does not know."""
    if not _is_sound("DEFAULT_RUN_OPTIONS") or not settings.DEFAULT_RUN_OPTIONS:
        return
    known = runner.host_options()
    for name in settings.DEFAULT_RUN_OPTIONS:
        if name not in known:
            message = f"{PREFIX}DEFAULT_RUN_OPTIONS has the unknown run option {name!r}."
            yield _error(13, message, validation.suggestion(str(name), known))


@register(checks.Tags.database)
def check_waiting(databases: Any = None, **_: Any) -> Iterator[CheckMessage]:
    """W020, W021: runs wait for a decision, but their agent or tool no longer exists.

    Queries the database, so it runs only in ``check --database default`` and ``migrate``.
    """
    if not databases or not _is_sound("DATABASE") or settings.DATABASE not in databases:
        return
    try:
        rows = list(approvals.approval_rows().waiting_calls()[:1000])
        keys = set(registry.keys())
    except (Error, BadSetting):  # The table does not exist yet, or E002 reports the registry.
        return
    for key in sorted({row.run.agent_key for row in rows} - keys - _UNREGISTERED):
        message = f"Runs of the agent {key!r} wait for a person, but it is not registered."
        yield _warning(20, message, _KEEP)
    known = {key: _names(key) for key in {row.run.agent_key for row in rows} & keys}
    gone = {(r.agent, r.tool) for r in rows if _is_gone(known.get(r.run.agent_key), r)}
    for agent, tool in sorted(gone):
        message = (
            f"A run waits for a decision about {tool!r}, which the agent {agent!r} no longer has."
        )
        yield _warning(21, message, _KEEP)


_KEEP = "Keep agents and tools under their names until these runs are decided, or cancel the runs."
_UNREGISTERED = {submitted.AGENT_KEY, inline.AGENT_KEY}


def _names(key: str) -> dict[str, set[str] | None] | None:
    """Return the tools of an agent and of the agents it can call, by agent name.

    A value is None if only a running agent knows its tools. The result is None for work that is
    not an agent of the SDK.
    """
    try:
        agent: Any = registry.get(key)()
    except Exception:  # noqa: BLE001 - a factory of the host's, which may want a run
        return None
    found: dict[str, set[str] | None] = {}
    todo = [agent] if isinstance(agent, agents.Agent) else []
    while todo:
        agent = todo.pop()
        if agent.name not in found:
            found[agent.name] = _tools(agent)
            todo += [h for h in agent.handoffs if isinstance(h, agents.Agent)]
            todo += filter(None, (getattr(t, "_agent_instance", None) for t in agent.tools))
    return found or None


def _tools(agent: Any) -> set[str] | None:
    is_open = agent.mcp_servers or any(not isinstance(t, agents.FunctionTool) for t in agent.tools)
    return None if is_open else {tool.name for tool in agent.tools}


def _is_gone(known: dict[str, set[str] | None] | None, row: ToolApproval) -> bool:
    if known is None:
        return False
    tools = known.get(row.agent, set())
    return tools is not None and row.tool not in tools


# Queues


@register(TAG)
def check_backend(**_: Any) -> Iterator[CheckMessage]:
    """E006, E007, W004: the task backend and its queues."""
    if not _is_sound("TASK_BACKEND") or not _is_sound("QUEUES"):
        return
    alias = settings.TASK_BACKEND
    if alias not in task_backends.settings:
        known = ", ".join(map(repr, task_backends.settings))
        hint = f"Set it to one of {known}, or add {alias!r} to TASKS."
        yield _error(6, f"{PREFIX}TASK_BACKEND is {alias!r}, which is not in TASKS.", hint)
        return
    # Without an entry for "*", all other agents use the queue "default".
    queues = {"*": "default", **settings.QUEUES}
    yield from _unknown_queues(alias, queues)
    yield from _short_queues(alias, set(queues.values()))


def _unknown_queues(alias: str, queues: dict[str, str]) -> Iterator[CheckMessage]:
    known = task_backends[alias].queues
    for key, queue in queues.items():
        if known and queue not in known:
            message = f"{PREFIX}QUEUES sends {key!r} to {queue!r}, which is not a queue in TASKS."
            hint = (
                f"Add {queue!r} to TASKS[{alias!r}]['QUEUES'], "
                f"or choose one of: {', '.join(sorted(known))}."
            )
            yield _error(7, message, hint)


def _short_queues(alias: str, queues: set[str]) -> Iterator[CheckMessage]:
    if not _is_on_rq(alias) or not _is_sound("RUN_TIMEOUT_SECONDS"):
        return
    limit, options = settings.RUN_TIMEOUT_SECONDS, getattr(django_settings, "RQ_QUEUES", {})
    for queue in sorted(queues & options.keys()):
        seconds = _seconds(options[queue].get("DEFAULT_TIMEOUT"))
        if 0 < seconds <= limit:
            message = (
                f"RQ kills jobs of the queue {queue!r} after {seconds:g} s, "
                f"but a run may take {limit:g} s."
            )
            hint = (
                f"Set RQ_QUEUES[{queue!r}]['DEFAULT_TIMEOUT'] to more than {limit:g} "
                f"(for example {limit + 60:g}), or lower {PREFIX}RUN_TIMEOUT_SECONDS."
            )
            yield _warning(4, message, hint)


def _is_on_rq(alias: str) -> bool:
    kinds = type(task_backends[alias]).mro()
    return any(kind.__module__.startswith("django_tasks_rq") for kind in kinds)


def _seconds(timeout: Any) -> float:
    from rq.exceptions import TimeoutFormatError  # noqa: PLC0415 - installed only if RQ is used
    from rq.utils import parse_timeout  # noqa: PLC0415 - an extra

    try:
        return float(parse_timeout(timeout) or _RQ_SECONDS)
    except TimeoutFormatError:  # RQ itself reports it.
        return _RQ_SECONDS


# Database


@register(TAG)
def check_database(**_: Any) -> Iterator[CheckMessage]:
    """E008, E009, E014, W005: the database of the app's tables."""
    if not django_settings.USE_TZ:
        hint = "Set USE_TZ = True. Leases and time limits are compared with the database's clock."
        yield _error(8, "USE_TZ is False.", hint)
    if not _is_sound("DATABASE"):
        return
    alias = settings.DATABASE
    if alias not in django_settings.DATABASES:
        known = ", ".join(map(repr, django_settings.DATABASES))
        hint = f"Set it to one of {known}."
        yield _error(9, f"{PREFIX}DATABASE is {alias!r}, which is not in DATABASES.", hint)
        return
    yield from _rows_elsewhere(alias)
    if _is_deferred_sqlite(django_settings.DATABASES[alias]):
        message = f"The SQLite database {alias!r} begins its transactions without the write lock."
        hint = (
            f"Set DATABASES[{alias!r}]['OPTIONS'] = {{'transaction_mode': 'IMMEDIATE'}}. Otherwise "
            "two concurrent writers may fail with 'database is locked' without waiting."
        )
        yield _warning(5, message, hint)


def _rows_elsewhere(alias: str) -> Iterator[CheckMessage]:
    """Yield E014 if Django's routers send the app's models to another database."""
    for other in {router.db_for_read(AgentRun), router.db_for_write(AgentRun)} - {alias}:
        message = (
            f"{PREFIX}DATABASE is {alias!r}, but Django's routers send the models to {other!r}."
        )
        hint = (
            "Add a router to DATABASE_ROUTERS that returns this alias for the app label "
            "'agentic_django', in db_for_read and db_for_write."
        )
        yield _error(14, message, hint)


def _is_deferred_sqlite(database: dict[str, Any]) -> bool:
    mode = str(database.get("OPTIONS", {}).get("transaction_mode") or "DEFERRED")
    return database["ENGINE"].endswith("sqlite3") and mode.upper() == "DEFERRED"


# Pages and clients


@register(TAG)
def check_pages(**_: Any) -> Iterator[CheckMessage]:
    """E011, W006: the base template and the htmx script of the app's pages."""
    if _is_sound("BASE_TEMPLATE"):
        yield from _missing_template(settings.BASE_TEMPLATE)
    if not apps.is_installed("django_htmx"):
        message = "django_htmx is not in INSTALLED_APPS, so the pages do not find the htmx script."
        hint = "Add 'django_htmx'. It was installed with this app."
        yield _warning(6, message, hint)


def _missing_template(name: str) -> Iterator[CheckMessage]:
    try:
        get_template(name)
    except TemplateDoesNotExist as error:
        hint = (
            "Correct the name. The default, "
            f"{Settings.options()[PREFIX + 'BASE_TEMPLATE'].default!r}, "
            "needs a DjangoTemplates engine with APP_DIRS in TEMPLATES."
        )
        yield _error(11, f"{PREFIX}BASE_TEMPLATE: the template {error} does not exist.", hint)


@register(TAG)
def check_wakeup(**_: Any) -> Iterator[CheckMessage]:
    """E040, E041, W040: how processes notify each other."""
    if not all(map(_is_sound, ("WAKEUP", "REDIS_URL", "DATABASE"))):
        return
    if settings.WAKEUP == "redis" and not settings.REDIS_URL:
        hint = (
            f"Set it, for example to 'redis://127.0.0.1:6379/0', or set {PREFIX}WAKEUP to 'auto'."
        )
        yield _error(40, f"{PREFIX}WAKEUP is 'redis', but {PREFIX}REDIS_URL is not set.", hint)
    if settings.WAKEUP == "postgres" and not _is_on_psycopg():
        hint = f"Set {PREFIX}WAKEUP to 'auto'. 'postgres' needs PostgreSQL and psycopg 3."
        message = (
            f"{PREFIX}WAKEUP is 'postgres', but the database {settings.DATABASE!r} cannot notify."
        )
        yield _error(40, message, hint)
    if settings.REDIS_URL:
        yield from _unusable_redis(settings.REDIS_URL)


def _is_on_psycopg() -> bool:
    entry = django_settings.DATABASES.get(settings.DATABASE, {})
    return "postg" in str(entry.get("ENGINE")) and find_spec("psycopg") is not None


def _unusable_redis(url: str) -> Iterator[CheckMessage]:
    name = f"{PREFIX}REDIS_URL"
    if settings.WAKEUP not in ("auto", "redis"):
        message = f"{name} is set, but {PREFIX}WAKEUP is {settings.WAKEUP!r}."
        yield _warning(40, message, f"Remove one of the two. {name} has no other use.")
    elif find_spec("redis") is None:
        yield _error(41, f"{name} is set, but redis is not installed.", "Run pip install redis.")
    elif not url.startswith(("redis://", "rediss://", "unix://")):
        hint = "Use a URL that begins with redis://, rediss:// or unix://."
        yield _error(41, f"{name} is {url!r}, which is not the URL of a server.", hint)


@register(TAG)
def check_client_options(**_: Any) -> Iterator[CheckMessage]:
    """E010: the options for clients name an unknown run option."""
    if not _is_sound("CLIENT_RUN_OPTIONS"):
        return
    known = validation.RunOptions.model_fields
    for name in settings.CLIENT_RUN_OPTIONS:
        if name not in known:
            message = f"{PREFIX}CLIENT_RUN_OPTIONS has the unknown run option {name!r}."
            yield _error(10, message, validation.suggestion(name, known))
