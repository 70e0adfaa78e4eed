"""Tools for loops that a host writes by hand, over the SDK's own function schema."""

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
from agentic_django.openai_agents.tools import ManualToolContext, journaled_tool
from agentic_django.serialization import dumps, to_jsonable

__all__ = ["Tool", "ToolRegistry"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may have called."""

    function_tool: agents.FunctionTool

    @classmethod
    def from_function(
        cls, fn: Callable[..., Any], *, name: str | None = None, description: str | None = None
    ) -> Tool:
        """Return a tool for a function; its signature and docstring describe it to the model.

        A synchronous function runs on the run's thread, where it may use the ORM.
        """
        made = agents.function_tool(
            _crossing(fn), name_override=name, description_override=description
        )
        return cls(journaled_tool(made))

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.function_tool.name

    def to_openai_format(self) -> dict[str, Any]:
        """Return the tool as OpenAI's chat API describes it."""
        function = {
            "name": self.name,
            "description": self.function_tool.description,
            "parameters": self.function_tool.params_json_schema,
        }
        return {"type": "function", "function": function}


def _crossing(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as an asynchronous one; a synchronous one is called on the run's thread."""
    if inspect.iscoroutinefunction(fn):
        return fn

    # An object that can be called has its signature in its class.
    shape = fn if inspect.isroutine(fn) else type(fn).__call__.__get__(fn)

    @wraps(shape)
    async def call(*args: Any, **kwargs: Any) -> Any:
        if inspect.iscoroutinefunction(shape):
            return await fn(*args, **kwargs)
        value = await event_loop.run_host_code(fn, *args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    call.__name__ = getattr(fn, "__name__", type(fn).__name__)
    call.__doc__ = fn.__doc__
    return call


@dataclass(slots=True)
class ToolRegistry:
    """Tools by name; iterating gives what ``RunContext.generate(tools=…)`` takes."""

    _tools: dict[str, Tool] = field(default_factory=dict)

    def register(self, tool: Tool | Callable[..., Any]) -> Tool:
        """Add a tool or a function; raises BadInput if its name is taken."""
        made = tool if isinstance(tool, Tool) else Tool.from_function(tool)
        if made.name in self._tools:
            raise BadInput(f"There is a tool {made.name!r} already. Give this one another name.")
        self._tools[made.name] = made
        return made

    def __iter__(self) -> Iterator[agents.FunctionTool]:
        return (tool.function_tool for tool in self._tools.values())

    def to_openai_format(self) -> list[dict[str, Any]]:
        """Return all tools as OpenAI's chat API describes them."""
        return [tool.to_openai_format() for tool in self._tools.values()]

    async def execute(
        self, name: str, arguments: str | Mapping[str, Any], *, call_id: str | None = None
    ) -> Any:
        """Call a tool with arguments as JSON text or a dict; return what it returns, as JSON.

        What a tool raises becomes a text for the model, as the SDK writes it. Within a run the
        result is recorded under ``call_id``, the id that the model gave its call; without one,
        calls are told apart by their arguments, and the same ones by their order. Raises
        BadInput for a name that is not registered, and NotSerializable.
        """
        if name not in self._tools:
            known = ", ".join(self._tools) or "none"
            raise BadInput(f"There is no tool {name!r}. Tools: {known}.")
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
