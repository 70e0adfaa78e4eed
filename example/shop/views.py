"""The help desk's one page."""

from __future__ import annotations

from uuid import uuid4

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from agentic_django.models import AgentSession
from agentic_django.permissions import Viewer


@login_required
def desk(request: HttpRequest) -> HttpResponse:
    """Begin a conversation; its first message makes it."""
    return redirect("conversation", session_key=uuid4().hex)


@login_required
def conversation(request: HttpRequest, session_key: str) -> HttpResponse:
    """Show a conversation beside all others of this person, newest first."""
    mine = AgentSession.objects.visible_to(Viewer.for_request(request)).order_by("-updated_at")
    context = {
        "conversations": mine[:50],
        "conversation": mine.filter(session_key=session_key).first(),
        "session_key": session_key,
    }
    return render(request, "shop/desk.html", context)
