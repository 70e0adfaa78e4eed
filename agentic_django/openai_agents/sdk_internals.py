"""The private names of the Agents SDK that the journal uses. No other module uses any.

The SDK may change these names in any release. For each name,
``tests/openai_agents/test_sdk_contract.py`` has a test that fails if it changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from types import CellType, SimpleNamespace
from typing import Any, cast

from agents.handoffs import Handoff
from agents.items import ItemHelpers
from agents.models._openai_shared import get_default_openai_client, get_default_openai_key
from agents.models.interface import Model
from agents.run_state import RunState
from agents.tool import (
    FunctionTool,
    _FailureHandlingFunctionToolInvoker,
    _get_function_tool_invoke_context,
    maybe_invoke_function_tool_failure_error_function,
)
from agents.tool_context import ToolContext
from pydantic import TypeAdapter

__all__ = [
    "APPROVAL_POLICY",
    "FAILURE_ERROR_FUNCTION",
    "DelegatingInvoker",
    "DelegatingModel",
    "agent_behind_tool",
    "get_default_openai_client",
    "get_default_openai_key",
    "handoff_cells",
    "is_agent_tool",
    "is_of_sdk",
    "is_sdk_invoker",
    "is_structured_output",
    "narrow_context",
    "original_input",
    "output_type_adapter",
    "passing_fatal_errors",
    "raising_fatal_errors",
    "tool_error_text",
]

FAILURE_ERROR_FUNCTION = "_failure_error_function"
"""The attribute of a tool or an MCP server with the host's ``failure_error_function``."""

APPROVAL_POLICY = "_needs_approval_policy"
"""The attribute of an MCP server with the host's ``require_approval``."""

_HANDOFF_CALLBACKS = ("on_handoff", "is_enabled")

type Call = Callable[[Any], Awaitable[Any]]
"""Calls a tool's own code with these arguments."""

type AroundCall = Callable[[Any, Call, ToolContext[Any], Any], Awaitable[Any]]
"""Makes a tool call: ``around(tool, call, context, arguments)``."""


def is_of_sdk(callback: Any) -> bool:
    """Return whether a function or an object is the SDK's own, and not a host's."""
    module = getattr(callback, "__module__", None) or type(callback).__module__
    return module.partition(".")[0] == "agents"


def handoff_cells(handoff: Handoff[Any, Any]) -> list[CellType]:
    """Return the closure cells that hold a handoff's ``on_handoff`` and callable ``is_enabled``.

    ``agents.handoff()`` keeps these callbacks in closures and not in attributes.
    """
    invoke: Any = handoff.on_invoke_handoff
    inner = invoke.args[0] if isinstance(invoke, partial) and invoke.args else invoke
    found: list[CellType] = []
    functions: tuple[Any, Any] = (inner, handoff.is_enabled)
    for function in functions:
        code = getattr(function, "__code__", None)
        if code is not None and is_of_sdk(function):
            named = zip(code.co_freevars, function.__closure__ or (), strict=True)
            found += [cell for name, cell in named if name in _HANDOFF_CALLBACKS]
    return found


def is_agent_tool(tool: Any) -> bool:
    """Return whether a tool runs an agent (``Agent.as_tool``)."""
    return bool(getattr(tool, "_is_agent_tool", False))


def agent_behind_tool(tool: FunctionTool) -> Any:
    """Return the agent that a tool runs, for a tool made by ``Agent.as_tool``."""
    return tool._agent_instance


def original_input(state: RunState[Any]) -> Any:
    """Return the input with which the run of a state began."""
    return state._original_input


def output_type_adapter(tool: Any) -> TypeAdapter[Any] | None:
    """Return the adapter with which the SDK serializes a tool's typed result, or None."""
    return tool._output_type_adapter if isinstance(tool, FunctionTool) else None


def is_structured_output(value: Any) -> bool:
    """Return whether the SDK sends a tool's result as text, image and file parts."""
    return bool(ItemHelpers._convert_tool_output_as_structured(value))


def narrow_context(invoker: Callable[..., Any], ctx: ToolContext[Any]) -> Any:
    """Return the context that the SDK would pass to this invoker, according to its annotations."""
    return _get_function_tool_invoke_context(SimpleNamespace(on_invoke_tool=invoker), ctx)  # type: ignore[arg-type]


async def tool_error_text(tool: Any, ctx: ToolContext[Any], error: Exception) -> str | None:
    """Return the message for the model about a tool's error, or None if the error ends the run."""
    if not isinstance(tool, FunctionTool):
        return None
    return await maybe_invoke_function_tool_failure_error_function(
        function_tool=tool, context=ctx, error=error
    )


def is_sdk_invoker(invoker: Any) -> bool:
    """Return whether the SDK made this invoker, for example with ``function_tool``."""
    return isinstance(invoker, _FailureHandlingFunctionToolInvoker)


class FatalToolError(BaseException):
    """Carries an error of a tool past the SDK, which would make it a result for the model.

    The error is the cause.
    """


def passing_fatal_errors(invoke: Any) -> Any:
    """Return the SDK's function that calls a tool, such that fatal errors pass the SDK.

    Within ``raising_fatal_errors`` the error is raised as a FatalToolError.
    """
    if hasattr(invoke, "agentic_passes_fatal_errors"):
        return invoke

    @wraps(invoke)  # It also copies the SDK's marks.
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await invoke(*args, **kwargs)
        except Exception as error:
            is_fatal = _is_fatal.get()
            if is_fatal is not None and is_fatal(error):
                raise FatalToolError from error
            raise

    call.agentic_passes_fatal_errors = True  # type: ignore[attr-defined]
    return call


_is_fatal: ContextVar[Callable[[Exception], bool] | None]
_is_fatal = ContextVar("agentic_is_fatal", default=None)


@contextmanager
def raising_fatal_errors(is_fatal: Callable[[Exception], bool]) -> Iterator[None]:
    """Raise an error of a tool for which ``is_fatal`` is true as it is, out of this block."""
    token = _is_fatal.set(is_fatal)
    try:
        yield
    except FatalToolError as error:
        raise cast("Exception", error.__cause__) from None
    finally:
        _is_fatal.reset(token)


class DelegatingInvoker(_FailureHandlingFunctionToolInvoker):
    """Delegates to an invoker of the SDK, and passes each call through ``around``.

    It is a subclass of the SDK's class, because the SDK coerces arguments before an approval only
    for that class. With a plain function, the SDK executed a call that needed an approval.
    """

    def __init__(self, inner: Any, around: AroundCall) -> None:
        inner._invoke_tool_impl = passing_fatal_errors(inner._invoke_tool_impl)
        vars(self).update(vars(inner))
        self.inner = inner
        self.around = around

    def __call__(self, ctx: ToolContext[Any], input: str) -> Any:
        """Begin a call. This is not a coroutine function, so that ``around`` starts immediately."""
        return self.around(self._function_tool, partial(self.inner, ctx), ctx, input)

    def __agents_bind_function_tool__(self, function_tool: FunctionTool) -> DelegatingInvoker:
        """Return an invoker for a copy of the tool, with the attributes of this one."""
        bound = self.inner.__agents_bind_function_tool__(function_tool)
        if bound is self.inner:
            return self
        delegating = type(self)(bound, self.around)
        vars(delegating).update({k: v for k, v in vars(self).items() if k not in vars(delegating)})
        return delegating


class DelegatingModel(Model):
    """A base class for models that pass everything to an inner model."""

    def __init__(self, inner: Model) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # It is not set yet while a copy is made.
            raise AttributeError(name)
        return getattr(self.inner, name)

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self.inner._cleanup_on_run_end(owner)

    async def close(self) -> None:
        """Close the inner model."""
        await self.inner.close()

    def get_retry_advice(self, request: Any) -> Any:
        """Return the inner model's advice."""
        return self.inner.get_retry_advice(request)
