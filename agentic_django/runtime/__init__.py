"""The API for a host's own code within a run: ``RunContext``, tools and model calls."""

from agentic_django.engine.events import EventType
from agentic_django.openai_agents.call_scope import current_step
from agentic_django.openai_agents.error_classification import RetryDecision
from agentic_django.openai_agents.error_classification import classify as classify_error
from agentic_django.openai_agents.tool_marks import asks, at_most_once, editable
from agentic_django.runtime.context import AgentRuntime, RunContext, Runtime
from agentic_django.runtime.messages import Message
from agentic_django.runtime.model_calls import Answer
from agentic_django.runtime.results import RunResult
from agentic_django.runtime.tools import Tool, ToolRegistry

__all__ = [
    "AgentRuntime",
    "Answer",
    "EventType",
    "Message",
    "RetryDecision",
    "RunContext",
    "RunResult",
    "Runtime",
    "Tool",
    "ToolRegistry",
    "asks",
    "at_most_once",
    "classify_error",
    "current_step",
    "editable",
]
