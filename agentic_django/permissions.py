"""Who asks: built once for each request, or by a service's caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentic_django.conf import load, settings

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
    from django.http import HttpRequest


__all__ = ["Viewer", "may_decide", "principal_of"]


def principal_of(user: AbstractBaseUser | AnonymousUser | None) -> str:
    """Return the stored name of who owns a row: ``user:<pk>``, or ``""`` for nobody."""
    if user is None or user.pk is None:
        return ""
    return f"user:{user.pk}"


@dataclass(frozen=True, slots=True)
class Viewer:
    """The person on whose behalf rows are looked up.

    A viewer without a principal sees nothing.
    """

    principal: str
    tenant: str = ""
    staff: bool = False

    @classmethod
    def for_user(cls, user: AbstractBaseUser | AnonymousUser | None, tenant: str = "") -> Viewer:
        """Return the viewer for a user; anonymous users get one that sees nothing."""
        return cls(principal_of(user), tenant, bool(getattr(user, "is_staff", False)))

    @classmethod
    def for_request(cls, request: HttpRequest) -> Viewer:
        """Return the viewer for a request's user."""
        return cls.for_user(getattr(request, "user", None))


def may_decide(user: Any, approval: Any) -> bool:
    """Whether a user may decide: what ``AGENTIC_DJANGO_APPROVERS`` says, else the owner."""
    if user is None or not user.is_authenticated:
        return False
    hook = settings.APPROVERS
    if hook is not None:
        return bool(load(hook)(user, approval))
    viewer = Viewer.for_user(user, approval.run.tenant)
    return bool(viewer.principal) and viewer.principal == approval.run.principal
