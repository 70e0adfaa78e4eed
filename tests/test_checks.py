"""System checks find wrong settings; each has an id and a hint that says how to fix it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core import checks
from django.db import router

from agentic_django import checks as our_checks
from agentic_django import registry
from agentic_django.conf import PREFIX, Settings
from agentic_django.management.commands.agentic_django_worker import Command
from tests.settings import ROOT, TASK_BACKENDS


def messages_by_id() -> dict[str, checks.CheckMessage]:
    """Run the app's checks and return their messages by id."""
    return {message.id or "": message for message in checks.run_checks(tags=[our_checks.TAG])}


def agents_twice() -> dict[str, Callable[[], Any]]:
    return {"default": dict, "echo": dict}


def agents_once() -> dict[str, Callable[[], Any]]:
    return {"echo": dict}


def no_agents() -> dict[str, Callable[[], Any]]:
    return {}


def a_list() -> list[str]:
    return ["echo"]


def a_bad_factory() -> dict[str, str]:
    return {"echo": "not callable"}


def test_the_test_project_passes() -> None:
    assert messages_by_id() == {}


def test_every_message_has_a_hint(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.USE_TZ = False
    settings.AGENTIC_DJANGO_RATE_LIMIT = "often"
    settings.AGENTIC_DJANGO_RATE_LIMITS = "20/m"
    settings.AGENTIC_DJANGO_TASK_BACKEND = "nowhere"
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = None
    monkeypatch.setitem(django_settings.DATABASES["default"], "ENGINE", "x.sqlite3")
    monkeypatch.setitem(django_settings.DATABASES["default"], "OPTIONS", {})
    messages = messages_by_id()
    assert len(messages) >= 6
    assert all(message.hint for message in messages.values())


# Values and names

BAD_VALUES = [
    ("AGENT_REGISTRY", 3, "valid string"),
    ("AGENT_REGISTRY", [3], "valid string"),
    ("DEFAULT_AGENT_KEY", None, "valid string"),
    ("AGENT_ACCESS", 3, "callable"),
    ("TASK_BACKEND", None, "valid string"),
    ("QUEUES", "slow", "dictionary"),
    ("QUEUES", {"echo": 3}, "echo: "),
    ("DEFAULT_RUN_OPTIONS", ["max_turns"], "dictionary"),
    ("CLIENT_RUN_OPTIONS", "max_turns", "Sequence"),
    ("CLIENT_INPUT_ITEMS", "user", "Sequence"),
    ("CONTEXT_FACTORY", 3, "callable"),
    ("CLASSIFY_ERROR", 3, "callable"),
    ("DEFAULT_MODEL", 5, "valid string"),
    ("STEP_MODULES", "reports.steps", "Sequence"),
    ("STEP_MODULES", [5], "valid string"),
    ("EVENT_VISIBILITY", {"message": "everybody"}, "message: "),
    ("EVENT_VISIBILITY", ["message"], "dictionary"),
    ("SHOW_DEBUG_EVENTS", "no", "boolean"),
    ("ENABLE_EVENTS", "false", "boolean"),
    ("ENABLE_EVENTS", 0, "boolean"),
    ("RATE_LIMIT", "20", "use a rate such as '20/m'"),
    ("RATE_LIMIT", "0/m", "use a rate such as '20/m'"),
    ("RATE_LIMIT", 20, "valid string"),
    ("REFUSED_RATE_LIMIT", "60", "use a rate such as '20/m'"),
    ("MAX_INPUT_BYTES", 0, "greater than 0"),
    ("MAX_INPUT_BYTES", "1024", "integer"),
    ("MAX_INPUT_ITEMS", -1, "greater than 0"),
    ("CLEANUP_POLICY", {"run_days": 30}, "run_days"),
    ("CLEANUP_POLICY", {"runs_days": -1}, "runs_days"),
    ("CLEANUP_POLICY", {"runs_days": "30"}, "runs_days"),
    ("CLEANUP_POLICY", {"runs_statuses": ["running"]}, "'completed', 'failed'"),
    ("CLEANUP_POLICY", {"batch_size": 0}, "batch_size"),
    ("CLEANUP_POLICY", None, "dictionary"),
    ("STARTUP_RECOVERY", "retry", "'ignore', 'fail' or 'requeue'"),
    ("CONCURRENCY_LIMIT", 0, "greater than 0"),
    ("CONCURRENCY_LIMIT", True, "integer"),
    ("CONCURRENCY_LIMIT", {"echo": 0}, "echo: "),
    ("COMPACT_HISTORY", 3, "callable"),
    ("RUN_TIMEOUT_SECONDS", 0, "greater than 0"),
    ("RUN_TIMEOUT_SECONDS", "900", "number"),
    ("RUN_TIMEOUT_SECONDS", float("inf"), "less than"),
    ("LEASE_SECONDS", None, "number"),
    ("MAX_ATTEMPTS", 0, "greater than 0"),
    ("APPROVERS", 3, "callable"),
    ("APPROVAL_TTL", 0, "greater than 0"),
    ("DATABASE", None, "valid string"),
    ("POLL_SECONDS", -1, "greater than 0"),
    ("STREAM_SECONDS", 0, "greater than 0"),
    ("WAKEUP", "rabbit", "'auto', 'postgres', 'redis' or 'poll'"),
    ("REDIS_URL", 6379, "valid string"),
    ("BASE_TEMPLATE", None, "valid string"),
]


@pytest.mark.parametrize(("name", "value", "reason"), BAD_VALUES)
def test_an_invalid_value_is_an_error_with_a_hint(
    settings: Any, name: str, value: Any, reason: str
) -> None:
    setattr(settings, PREFIX + name, value)
    error = messages_by_id()["agentic_django.E001"]
    assert error.level == checks.ERROR
    assert error.msg.startswith(f"{PREFIX}{name} is invalid: ")
    assert reason in error.msg
    assert Settings.options()[PREFIX + name].hint in (error.hint or "")


GOOD_VALUES = [
    ("AGENT_REGISTRY", ["tests.support.agents.agents"]),
    ("AGENT_REGISTRY", "tests.support.agents:agents"),
    ("AGENT_ACCESS", lambda request, key: True),
    ("CONTEXT_FACTORY", "tests.test_checks.agents_once"),
    ("QUEUES", {}),
    ("DEFAULT_MODEL", "litellm/anthropic/any"),
    ("STEP_MODULES", ["tests.support.agents"]),
    ("EVENT_VISIBILITY", {"message": "internal", "import.row": "user"}),
    ("RATE_LIMIT", None),
    ("RATE_LIMIT", "1/d"),
    ("REFUSED_RATE_LIMIT", None),
    ("CLEANUP_POLICY", {"runs_days": 30, "runs_statuses": ["failed"]}),
    ("CLEANUP_POLICY", {"events_days": 0.5, "runs_statuses": ("failed", "cancelled")}),
    ("CONCURRENCY_LIMIT", 5),
    ("CONCURRENCY_LIMIT", {"*": 200, "echo": 10}),
    ("RUN_TIMEOUT_SECONDS", 0.5),
    ("CLIENT_RUN_OPTIONS", []),
    ("CLIENT_INPUT_ITEMS", []),
    ("APPROVERS", lambda user, approval: True),
    ("APPROVAL_TTL", 3600),
]


@pytest.mark.parametrize(("name", "value"), GOOD_VALUES)
def test_a_valid_value_gives_no_message(settings: Any, name: str, value: Any) -> None:
    setattr(settings, PREFIX + name, value)
    assert messages_by_id() == {}


def test_every_setting_is_tested_with_an_invalid_value() -> None:
    assert {PREFIX + name for name, *_ in BAD_VALUES} == set(Settings.options())


def test_a_misspelt_setting_is_a_warning_that_suggests_the_right_one(settings: Any) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMTI = "5/m"
    warning = messages_by_id()["agentic_django.W001"]
    assert warning.level == checks.WARNING
    assert warning.msg == "Unknown setting AGENTIC_DJANGO_RATE_LIMTI."
    assert warning.hint == "Did you mean AGENTIC_DJANGO_RATE_LIMIT?"


def test_the_hint_for_a_setting_that_resembles_none_lists_all_settings(settings: Any) -> None:
    settings.AGENTIC_DJANGO_XYZZY = 1
    assert "AGENTIC_DJANGO_LEASE_SECONDS" in (messages_by_id()["agentic_django.W001"].hint or "")


def test_settings_of_other_apps_are_ignored(settings: Any) -> None:
    settings.AGENTIC_CITY = 1
    settings.DJANGO_AGENTIC = 1
    assert messages_by_id() == {}


# Agents


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere.agents", "Cannot import 'nowhere.agents'"),
        ("tests.support.agents.nothing", "Cannot import 'tests.support.agents.nothing'"),
        ("agents", "Cannot import 'agents'"),
        ("tests.support.agents.USAGE", "not callable"),
        ("tests.test_checks.a_list", "list, not a dict"),
        ("tests.test_checks:a_bad_factory", "factory of 'echo' is not callable"),
    ],
)
def test_an_invalid_registry_is_an_error(settings: Any, path: str, reason: str) -> None:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = path
    assert reason in messages_by_id()["agentic_django.E002"].msg


def test_a_key_in_two_registries_is_an_error(settings: Any) -> None:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = [
        "tests.support.agents.agents",
        "tests.test_checks.agents_once",
    ]
    error = messages_by_id()["agentic_django.E003"]
    assert "'echo'" in error.msg
    assert "Rename or remove" in (error.hint or "")


def test_a_key_registered_twice_by_code_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_registry", registry._Registry())
    registry.register("default", dict)
    registry.register("default", list)
    assert "'default'" in messages_by_id()["agentic_django.E003"].msg
    assert registry.get("default") is dict


def test_a_key_registered_by_code_and_in_a_registry_is_an_error(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_registry", registry._Registry())
    registry.register("echo", dict)
    assert "'echo'" in messages_by_id()["agentic_django.E003"].msg


def test_a_default_agent_that_is_not_registered_is_an_error(settings: Any) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_AGENT_KEY = "suport"
    error = messages_by_id()["agentic_django.E004"]
    assert "'suport'" in error.msg
    assert "echo" in (error.hint or "")


def test_a_missing_default_agent_is_a_warning_if_the_setting_is_not_set(settings: Any) -> None:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = "tests.test_checks.agents_once"
    assert set(messages_by_id()) == {"agentic_django.W003"}


@pytest.mark.parametrize("value", [None, [], "tests.test_checks.no_agents"])
def test_a_project_without_agents_is_a_warning(settings: Any, value: Any) -> None:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = value
    assert set(messages_by_id()) == {"agentic_django.W002"}


def test_no_check_calls_a_factory(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", registry._Registry())
    registry.register("explosive", lambda: 1 / 0)
    assert messages_by_id() == {}


@pytest.mark.parametrize("name", ["AGENT_ACCESS", "CONTEXT_FACTORY", "CLASSIFY_ERROR"])
@pytest.mark.parametrize("path", ["nowhere.hook", "tests.support.agents.USAGE"])
def test_a_hook_that_does_not_exist_is_an_error(settings: Any, name: str, path: str) -> None:
    setattr(settings, PREFIX + name, path)
    error = messages_by_id()["agentic_django.E005"]
    assert error.msg.startswith(f"{PREFIX}{name}: ")
    assert path in error.msg


@pytest.mark.parametrize("module", ["nowhere.steps", "tests.support.agents.echo", "", ".agents"])
def test_a_step_module_that_cannot_be_imported_is_an_error(settings: Any, module: str) -> None:
    settings.AGENTIC_DJANGO_STEP_MODULES = ["tests.support.agents", module]
    assert repr(module) in messages_by_id()["agentic_django.E012"].msg


# Queues


def test_a_task_backend_that_is_not_in_tasks_is_an_error(settings: Any) -> None:
    settings.AGENTIC_DJANGO_TASK_BACKEND = "agents"
    error = messages_by_id()["agentic_django.E006"]
    assert "'agents'" in error.msg
    assert "'default'" in (error.hint or "")


@pytest.mark.parametrize("backend", TASK_BACKENDS)
def test_each_documented_backend_passes(use_tasks: Any, backend: str) -> None:
    use_tasks(backend)
    assert messages_by_id() == {}


@pytest.mark.parametrize("backend", TASK_BACKENDS)
def test_a_queue_that_the_backend_does_not_have_is_an_error(
    settings: Any, backend: str, valkey: Any
) -> None:
    settings.TASKS = {"default": {**TASK_BACKENDS[backend], "QUEUES": ["mail", "slow"]}}
    settings.AGENTIC_DJANGO_QUEUES = {"*": "slow", "echo": "fast"}
    error = messages_by_id()["agentic_django.E007"]
    assert "'echo' to 'fast'" in error.msg
    assert error.hint == "Add 'fast' to TASKS['default']['QUEUES'], or choose one of: mail, slow."


def test_the_default_queue_must_be_among_the_named_queues(settings: Any) -> None:
    settings.TASKS = {"default": {**TASK_BACKENDS["immediate"], "QUEUES": ["mail"]}}
    assert "'*' to 'default'" in messages_by_id()["agentic_django.E007"].msg


def test_a_backend_without_named_queues_accepts_any_queue(settings: Any) -> None:
    settings.TASKS = {"default": {**TASK_BACKENDS["immediate"], "QUEUES": []}}
    settings.AGENTIC_DJANGO_QUEUES = {"*": "anything"}
    assert messages_by_id() == {}


@pytest.mark.parametrize(
    ("queue", "is_short"),
    [
        ({}, True),
        ({"DEFAULT_TIMEOUT": 600}, True),
        ({"DEFAULT_TIMEOUT": "15m"}, True),
        ({"DEFAULT_TIMEOUT": "16m"}, False),
        ({"DEFAULT_TIMEOUT": 1000}, False),
        ({"DEFAULT_TIMEOUT": -1}, False),
    ],
)
def test_an_rq_queue_that_kills_jobs_before_the_time_limit_of_a_run_is_a_warning(
    use_tasks: Any, settings: Any, queue: dict[str, Any], is_short: bool
) -> None:
    use_tasks("rq")
    settings.RQ_QUEUES = {"default": {"HOST": "127.0.0.1", "PORT": 1, **queue}}
    assert ("agentic_django.W004" in messages_by_id()) is is_short


def test_timeouts_of_rq_are_ignored_on_other_backends(settings: Any) -> None:
    settings.RQ_QUEUES = {"default": {"HOST": "127.0.0.1", "PORT": 1, "DEFAULT_TIMEOUT": 1}}
    assert messages_by_id() == {}


# Database


def test_times_without_a_time_zone_are_an_error(settings: Any) -> None:
    settings.USE_TZ = False
    assert "USE_TZ = True" in (messages_by_id()["agentic_django.E008"].hint or "")


def test_a_database_that_does_not_exist_is_an_error(settings: Any) -> None:
    settings.AGENTIC_DJANGO_DATABASE = "agents"
    error = messages_by_id()["agentic_django.E009"]
    assert "'agents'" in error.msg
    assert "'default'" in (error.hint or "")


class Router:
    """Sends the app's models to a database of their own."""

    def db_for_read(self, model: Any, **_: Any) -> str:
        return "agents"

    db_for_write = db_for_read


def test_a_database_that_the_routers_do_not_return_is_an_error(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        django_settings.DATABASES, "agents", {"ENGINE": "django.db.backends.postgresql"}
    )
    settings.AGENTIC_DJANGO_DATABASE = "agents"
    error = messages_by_id()["agentic_django.E014"]
    assert "to 'default'" in error.msg
    assert "DATABASE_ROUTERS" in (error.hint or "")
    monkeypatch.setattr(router, "routers", [Router()])
    assert messages_by_id() == {}


@pytest.mark.parametrize("mode", [None, "DEFERRED", "deferred"])
def test_sqlite_with_deferred_transactions_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    database = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {"transaction_mode": mode}}
    monkeypatch.setitem(django_settings.DATABASES, "default", database)
    assert "'transaction_mode': 'IMMEDIATE'" in (messages_by_id()["agentic_django.W005"].hint or "")


@pytest.mark.parametrize("mode", ["IMMEDIATE", "immediate", "EXCLUSIVE"])
def test_sqlite_with_immediate_or_exclusive_transactions_passes(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    database = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {"transaction_mode": mode}}
    monkeypatch.setitem(django_settings.DATABASES, "default", database)
    assert messages_by_id() == {}


POSTGRES_ENGINE = "django.db.backends.postgresql"


@pytest.mark.parametrize("pool", [True, {"min_size": 2}, {"max_size": 23}])
def test_a_pool_that_is_smaller_than_the_worker_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, use_tasks: Any, pool: Any
) -> None:
    database = {"ENGINE": POSTGRES_ENGINE, "OPTIONS": {"pool": pool}}
    monkeypatch.setitem(django_settings.DATABASES, "default", database)
    use_tasks("rows")
    assert "'max_size': 24" in (messages_by_id()["agentic_django.W007"].hint or "")
    use_tasks("immediate")
    assert messages_by_id() == {}


@pytest.mark.parametrize("pool", [False, {"max_size": 24}, {"min_size": 30}])
def test_a_pool_that_is_large_enough_or_absent_passes(
    monkeypatch: pytest.MonkeyPatch, use_tasks: Any, pool: Any
) -> None:
    database = {"ENGINE": POSTGRES_ENGINE, "OPTIONS": {"pool": pool}}
    monkeypatch.setitem(django_settings.DATABASES, "default", database)
    use_tasks("rows")
    assert messages_by_id() == {}


def test_the_check_of_the_pool_knows_the_defaults_of_the_worker() -> None:
    parser = Command().create_parser("manage.py", "agentic_django_worker")
    defaults = vars(parser.parse_args([]))
    for name, value in our_checks.queues.WORKER_THREADS.items():
        assert defaults[name] == value


# Pages and clients


def test_a_base_template_that_does_not_exist_is_an_error(settings: Any) -> None:
    settings.AGENTIC_DJANGO_BASE_TEMPLATE = "shop/bose.html"
    assert "shop/bose.html" in messages_by_id()["agentic_django.E011"].msg


def test_templates_without_app_dirs_are_an_error(settings: Any) -> None:
    engine = "django.template.backends.django.DjangoTemplates"
    settings.TEMPLATES = [{"BACKEND": engine, "APP_DIRS": False}]
    assert "APP_DIRS" in (messages_by_id()["agentic_django.E011"].hint or "")


def test_a_missing_django_htmx_is_a_warning(settings: Any) -> None:
    settings.INSTALLED_APPS = [a for a in settings.INSTALLED_APPS if a != "django_htmx"]
    assert "'django_htmx'" in (messages_by_id()["agentic_django.W006"].hint or "")


def test_an_unknown_client_option_is_an_error(settings: Any) -> None:
    settings.AGENTIC_DJANGO_CLIENT_RUN_OPTIONS = ["max_turns", "max_turn"]
    error = messages_by_id()["agentic_django.E010"]
    assert "'max_turn'" in error.msg
    assert error.hint == "Did you mean 'max_turns'?"


def test_an_unknown_kind_of_client_items_is_an_error(settings: Any) -> None:
    settings.AGENTIC_DJANGO_CLIENT_INPUT_ITEMS = ["user", "file_id", "function_call", "asistant"]
    error = messages_by_id()["agentic_django.E015"]
    assert "'asistant'" in error.msg
    assert error.hint == "Did you mean 'assistant'?"


# Documentation


def test_the_documentation_lists_each_check_with_its_level() -> None:
    sources = [path.read_text() for path in Path(our_checks.__file__).parent.glob("*.py")]
    numbers = re.findall(r"yield (error|warning)\((\d+),", "".join(sources))
    made = {f"agentic_django.{kind[0].upper()}{int(number):03}" for kind, number in numbers}
    page = (ROOT / "docs/reference/checks.md").read_text()
    listed = re.findall(r"^\| `(agentic_django\.[EW]\d{3})` \|", page, re.MULTILINE)
    assert listed == sorted(listed)
    assert set(listed) == made


def test_a_misspelt_run_option_is_an_error_that_suggests_the_right_one(settings: Any) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"max_turn": 3, "model": "x"}
    error = messages_by_id()["agentic_django.E013"]
    assert "'max_turn'" in error.msg
    assert "max_turns" in str(error.hint)


# Waiting runs


@pytest.mark.django_db
def test_a_missing_agent_or_tool_of_a_waiting_run_is_a_warning(user: Any, scripted: Any) -> None:
    from agents import Agent, function_tool

    from agentic_django.models import ToolApproval
    from tests.support.rows import make_run

    @function_tool(needs_approval=True)
    def pay() -> str:
        """Pay."""
        return "paid"

    def look() -> set[str]:
        kept = checks.run_checks(databases=["default"])
        return {message.id or "" for message in kept} & {f"agentic_django.W02{n}" for n in (0, 1)}

    def wait(agent_key: str, agent: str, tool: str) -> Any:
        run = make_run(user, "waiting", agent_key=agent_key)
        return ToolApproval.objects.create(run=run, key="k", agent=agent, tool=tool)

    helper = Agent(name="helper", tools=[pay])
    nested = helper.as_tool(tool_name="help", tool_description="Help.")
    scripted("default", "Hello.", tools=[pay, nested])
    wait("default", "default", "pay")
    wait("default", "helper", "pay")
    assert look() == set()
    renamed = wait("default", "default", "pay_out")
    assert look() == {"agentic_django.W021"}
    renamed.delete()
    assert look() == set()
    wait("gone", "default", "pay")
    assert look() == {"agentic_django.W020"}
    assert "agentic_django.W020" not in messages_by_id()


# Notifications


@pytest.mark.parametrize(
    ("values", "finding"),
    [
        ({"WAKEUP": "redis"}, "E040"),
        ({"WAKEUP": "postgres"}, "E040"),
        ({"REDIS_URL": "http://127.0.0.1"}, "E041"),
        ({"WAKEUP": "poll", "REDIS_URL": "redis://127.0.0.1"}, "W040"),
        ({"WAKEUP": "pigeon"}, "E001"),
    ],
)
def test_a_wakeup_method_that_is_not_available_is_reported(
    settings: Any, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], finding: str
) -> None:
    monkeypatch.setitem(django_settings.DATABASES["default"], "ENGINE", "x.sqlite3")
    before = set(messages_by_id())
    for name, value in values.items():
        setattr(settings, PREFIX + name, value)
    assert set(messages_by_id()) - before == {f"agentic_django.{finding}"}


def test_a_redis_url_without_the_redis_package_is_an_error(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AGENTIC_DJANGO_REDIS_URL = "redis://127.0.0.1"
    assert messages_by_id() == {}
    monkeypatch.setattr(our_checks.notifications, "find_spec", lambda name: None)
    assert set(messages_by_id()) == {"agentic_django.E041"}
