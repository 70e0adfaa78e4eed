"""Tools for a host's own loop. Within a run, their results are recorded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import agents
from agents.tool import invoke_function_tool

from agentic_django.concurrency import event_loop
from agentic_django.exceptions import BadInput
from agentic_django.openai_agents.call_scope import current_scope
from agentic_django.openai_agents.journaled_tools import ManualToolContext, journaled_tool
from agentic_django.serialization import dumps, to_jsonable

__all__ = ["Tool", "ToolRegistry"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call, as a tool of the SDK."""

    function_tool: agents.FunctionTool

    @classmethod
    def from_function(
        cls, fn: Callable[..., Any], *, name: str | None = None, description: str | None = None
    ) -> Tool:
        """Return a tool for a function. Its signature and docstring describe it to the model.

        A synchronous function runs on the run's thread, where it may use the ORM.
        """
        function_tool = agents.function_tool(
            _asynchronous(fn), name_override=name, description_override=description
        )
        return cls(journaled_tool(function_tool))

    @property
    def name(self) -> str:
        """The name under which the model calls the tool."""
        return self.function_tool.name

    def to_openai_format(self) -> dict[str, Any]:
        """Return the tool in the format of OpenAI's chat API."""
        function = {
            "name": self.name,
            "description": self.function_tool.description,
            "parameters": self.function_tool.params_json_schema,
        }
        return {"type": "function", "function": function}


def _asynchronous(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return an asynchronous function that calls a synchronous one on the run's thread."""
    if inspect.iscoroutinefunction(fn):
        return fn

    # A callable object has the signature of its class's __call__.
    signature_source = fn if inspect.isroutine(fn) else type(fn).__call__.__get__(fn)

    @wraps(signature_source)
    async def call(*args: Any, **kwargs: Any) -> Any:
        if inspect.iscoroutinefunction(signature_source):
            return await fn(*args, **kwargs)
        value = await event_loop.run_host_code(fn, *args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    call.__name__ = getattr(fn, "__name__", type(fn).__name__)
    call.__doc__ = fn.__doc__
    return call


@dataclass(slots=True)
class ToolRegistry:
    """Tools by name. Pass a registry as ``tools`` to ``RunContext.generate``."""

    _tools: dict[str, Tool] = field(default_factory=dict)

    def register(self, tool: Tool | Callable[..., Any]) -> Tool:
        """Add a tool or a function. Raises BadInput if its name is already registered."""
        new = tool if isinstance(tool, Tool) else Tool.from_function(tool)
        if new.name in self._tools:
            raise BadInput(f"A tool {new.name!r} is registered already. Choose another name.")
        self._tools[new.name] = new
        return new

    def __iter__(self) -> Iterator[agents.FunctionTool]:
        return (tool.function_tool for tool in self._tools.values())

    def to_openai_format(self) -> list[dict[str, Any]]:
        """Return all tools in the format of OpenAI's chat API."""
        return [tool.to_openai_format() for tool in self._tools.values()]

    async def execute(
        self, name: str, arguments: str | Mapping[str, Any], *, call_id: str | None = None
    ) -> Any:
        """Call a tool with arguments, a JSON string or a dict, and return its result as JSON.

        If the tool raises, the result is the SDK's error message for the model. Within a run, the
        result is recorded under ``call_id``, the id that the model gave the call. Without an id,
        calls are distinguished by their arguments, and equal calls by their order. Raises BadInput
        if the name is unknown. Raises NotSerializable if the result is not JSON.
        """
        if name not in self._tools:
            known = ", ".join(self._tools) or "none"
            raise BadInput(f"Unknown tool {name!r}. Registered tools: {known}.")
        text = arguments if isinstance(arguments, str) else dumps(arguments)
        scope = current_scope()
        if call_id is None:
            call_id = scope.new_call_id(name, text) if scope else name
        context = ManualToolContext(
            context=None, tool_name=name, tool_call_id=call_id, tool_arguments=text
        )
        tool = self._tools[name].function_tool
        value = await invoke_function_tool(function_tool=tool, context=context, arguments=text)
        return to_jsonable(value, f"result of {name!r}")
