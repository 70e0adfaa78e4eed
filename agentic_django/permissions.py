"""The rules for seeing rows, using agents, deciding approvals and showing the names of users.

A rule is written here once. Querysets apply ``owned_by`` in their method ``visible_to``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any

from django.db.models import Q

from agentic_django import registry
from agentic_django.conf import Hook, load, settings
from agentic_django.exceptions import NotAllowed

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
    from django.http import HttpRequest


__all__ = [
    "Viewer",
    "check_agent_access",
    "is_owner",
    "may_decide",
    "name_for_owner",
    "owned_by",
    "principal_of",
    "usable_agents",
]

logger = logging.getLogger("agentic_django")


def principal_of(user: AbstractBaseUser | AnonymousUser | None) -> str:
    """Return the stored name of a row's owner: ``user:<pk>``, or ``""`` without an owner."""
    if user is None or user.pk is None:
        return ""
    return f"user:{user.pk}"


@dataclass(frozen=True, slots=True)
class Viewer:
    """A user for whom rows are looked up. A viewer without a principal sees no rows."""

    principal: str
    tenant: str = ""
    staff: bool = False

    @classmethod
    def for_user(cls, user: AbstractBaseUser | AnonymousUser | None, tenant: str = "") -> Viewer:
        """Return the viewer for a user. The viewer for an anonymous user sees no rows."""
        return cls(principal_of(user), tenant, bool(getattr(user, "is_staff", False)))

    @classmethod
    def for_request(cls, request: HttpRequest) -> Viewer:
        """Return the viewer for a request's user."""
        return cls.for_user(getattr(request, "user", None))


def owned_by(viewer: Viewer, path: str = "") -> Q:
    """Return the condition that a viewer owns a row.

    ``path`` leads to the row with the owner, for example ``"run__"``. A viewer without a principal
    owns no row.
    """
    if not viewer.principal:
        return Q(pk__in=())
    return Q(**{f"{path}principal": viewer.principal, f"{path}tenant": viewer.tenant})


def check_agent_access(request: HttpRequest, agent_key: str) -> None:
    """Raise UnknownAgent, or NotAllowed if ``AGENTIC_DJANGO_AGENT_ACCESS`` returns false."""
    if agent_key not in registry.keys():  # noqa: SIM118 - not a dict
        # Suggest only agents that the requester may use: other keys stay secret.
        raise registry.unknown_agent(agent_key, usable_agents(request))
    if not _may_use(request, agent_key):
        raise NotAllowed


def usable_agents(request: HttpRequest) -> list[str]:
    """Return the keys of the agents that the requester may use, the default one first."""
    usable = [key for key in registry.keys() if _may_use(request, key)]  # noqa: SIM118
    return sorted(usable, key=lambda key: (key != settings.DEFAULT_AGENT_KEY, key))


def _may_use(request: HttpRequest, agent_key: str) -> bool:
    hook = settings.AGENT_ACCESS
    return hook is None or _permits(hook, request, agent_key)


def may_decide(user: Any, approval: Any) -> bool:
    """Whether a user may decide an approval.

    ``AGENTIC_DJANGO_APPROVERS`` decides this. Without this setting only the run's owner may decide.
    """
    if user is None or not user.is_authenticated:
        return False
    hook = settings.APPROVERS
    if hook is not None:
        return _permits(hook, user, approval)
    viewer = Viewer.for_user(user, approval.run.tenant)
    return bool(viewer.principal) and viewer.principal == approval.run.principal


def _permits(hook: Hook, *arguments: Any) -> bool:
    """Whether a hook of the host permits something. A hook that raises denies, and is logged."""
    function = load(hook)
    try:
        answer = function(*arguments)
        if not isawaitable(answer):
            return bool(answer)
    except Exception:  # A hook may raise anything, for example on arguments that a model made up.
        logger.exception("The hook %r raised an exception, so it denies.", hook)
        return False
    if iscoroutine(answer):
        answer.close()
    logger.error("The hook %r is asynchronous, so it denies. Use a synchronous function.", hook)
    return False


def is_owner(user: Any, run: Any) -> bool:
    """Whether a user owns a run."""
    return getattr(user, "pk", None) is not None and user.pk == run.owner_id


def name_for_owner(user: Any, run: Any) -> str:
    """Return the name of a user who changed a run, as the run's owner may read it.

    Users other than the owner are "staff". A string is returned unchanged.
    """
    if user is None or isinstance(user, str):
        return user or ""
    return str(user) if is_owner(user, run) else "staff"
