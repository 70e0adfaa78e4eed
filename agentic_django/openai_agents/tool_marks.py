"""Marks for a host's tools: at most once, editable, and with a custom question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents.tool import CustomTool, FunctionTool

from agentic_django.exceptions import BadSetting
from agentic_django.openai_agents.journaled_tools import AT_MOST_ONCE, journaled_tool
from agentic_django.openai_agents.sdk_internals import is_agent_tool

__all__ = ["approval_wording", "asks", "at_most_once", "editable", "is_editable"]

_EDITABLE = "agentic_editable"
_WORDING = "agentic_asks"


def at_most_once[T](tool: T) -> T:
    """Mark a tool whose calls must not be repeated, and return the tool.

    The intent to call the tool is recorded first. If an attempt ends between the intent and the
    result, the app cannot know whether the call happened. Then the run waits for a person's
    decision, and the call is not repeated automatically. Raises BadSetting if the calls of the tool
    are not recorded.
    """
    sdk_tool = getattr(tool, "function_tool", tool)
    if is_agent_tool(sdk_tool):
        raise BadSetting("An agent as a tool is run again. Mark the tools of that agent instead.")
    if not isinstance(sdk_tool, FunctionTool | CustomTool):
        raise BadSetting(
            f"{sdk_tool!r} is not a tool whose calls are recorded. Mark the tool that is made of "
            "a function: at_most_once(function_tool(fn)), at_most_once(Tool.from_function(fn))."
        )
    # The SDK copies the invoker with the tool, so a copy of a marked tool is marked too.
    setattr(journaled_tool(sdk_tool).on_invoke_tool, AT_MOST_ONCE, True)
    return tool


def editable[T](tool: T) -> T:
    """Let a person edit the arguments of a tool's calls before approving them; return the tool.

    Use it for function tools with ``needs_approval``. Edited arguments are validated against the
    tool's schema. Raises BadSetting if the tool is not a function tool.
    """
    if not isinstance(tool, FunctionTool) or is_agent_tool(tool):
        raise BadSetting("Only the arguments of a function tool can be edited.")
    setattr(tool, _EDITABLE, True)
    return tool


def is_editable(tool: Any) -> bool:
    """Return whether a person may edit the arguments of a tool's calls."""
    return getattr(tool, _EDITABLE, False)


def asks[T](question: str, *, action: str = "") -> Callable[[T], T]:
    """Return a decorator that sets the question for the approval of a tool's calls.

    ``action`` is the label of the approve button. The question and the action may name arguments in
    braces: ``asks("Refund {amount} EUR?", action="Refund {amount}")``. If a call lacks such an
    argument, the app's own question is used.
    """

    def mark(tool: T) -> T:
        if not isinstance(tool, FunctionTool):
            raise BadSetting("asks() is for function tools, made by function_tool().")
        setattr(tool, _WORDING, (question, action))
        return tool

    return mark


def approval_wording(tool: Any, arguments: Any) -> dict[str, str]:
    """Return the host's ``question`` and ``action`` for a call; each may be empty."""
    question, action = getattr(tool, _WORDING, ("", ""))
    values = arguments if isinstance(arguments, dict) else {}
    try:
        return {"question": question.format_map(values), "action": action.format_map(values)}
    except (LookupError, ValueError, TypeError, AttributeError):  # The arguments do not fit.
        return {"question": "", "action": ""}
