"""The engine knows how each task backend delivers runs."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.tasks.backends.dummy import DummyBackend
from django.tasks.backends.immediate import ImmediateBackend

from agentic_django import services
from agentic_django.engine import queues
from agentic_django.models import AgentRun
from tests.settings import TASK_BACKENDS

DELIVERIES = {"immediate": "immediate", "django_tasks": "immediate", "rq": "rq", "rows": "rows"}


class OwnImmediateBackend(ImmediateBackend):
    """A host's subclass of a known backend."""


class DeclaringBackend(DummyBackend):
    """A host's backend that declares its delivery."""

    agentic_django_delivery = "immediate"


@pytest.mark.parametrize("backend", TASK_BACKENDS)
def test_delivery_of_each_known_backend_is_recognised(use_tasks: Any, backend: str) -> None:
    use_tasks(backend)
    assert queues.delivery() == DELIVERIES.get(backend, "other")
    is_immediate = backend in ("immediate", "django_tasks")
    assert queues.executes_immediately() is is_immediate


@pytest.mark.parametrize(
    ("backend", "delivery"),
    [
        (OwnImmediateBackend, "immediate"),
        (DeclaringBackend, "immediate"),
        (DummyBackend, "other"),
    ],
)
def test_backend_of_the_host_inherits_or_declares_its_delivery(
    settings: Any, backend: type[Any], delivery: str
) -> None:
    settings.TASKS = {"default": {"BACKEND": f"{backend.__module__}.{backend.__name__}"}}
    assert queues.delivery() == delivery


def test_unknown_delivery_is_an_error(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeclaringBackend, "agentic_django_delivery", "instant")
    settings.TASKS = {"default": {"BACKEND": f"{__name__}.DeclaringBackend"}}
    with pytest.raises(ValueError, match="instant"):
        queues.delivery()


def test_rq_executes_immediately_only_if_the_queues_of_all_agents_do(
    use_tasks: Any, settings: Any
) -> None:
    use_tasks("rq")
    options = settings.RQ_QUEUES["default"]
    settings.RQ_QUEUES = {"default": {**options, "ASYNC": False}, "slow": options}
    assert queues.executes_immediately() is True
    settings.AGENTIC_DJANGO_QUEUES = {"research": "slow"}
    assert queues.executes_immediately() is False
    assert queues.executes_immediately("research") is False
    assert queues.executes_immediately("echo") is True


@pytest.mark.django_db(transaction=True)
def test_run_on_a_synchronous_queue_of_rq_is_executed_when_it_is_submitted(
    use_tasks: Any, settings: Any, user: User
) -> None:
    use_tasks("rq")
    settings.RQ_QUEUES = {"default": {**settings.RQ_QUEUES["default"], "ASYNC": False}}
    for text in ("One", "Two"):
        services.submit_agent_run(
            owner=user, input_payload=text, session_key="talk", agent_key="echo"
        )
    outputs = AgentRun.objects.order_by("position").values_list("final_output", flat=True)
    assert list(outputs) == ["You said: One", "You said: Two"]
