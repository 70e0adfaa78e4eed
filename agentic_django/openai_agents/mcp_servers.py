"""Connects the MCP servers of agents when an attempt needs them, and cleans them up at its end.

A factory may return agents with servers that are not connected. A server is connected when the
first turn of its agent begins, whether the agent is the first one, the target of a handoff or a
tool. Runs that share a server object share its connection. A server that the host has connected
is left alone.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from agents.mcp import MCPServer, MCPServerManager

from agentic_django.concurrency.process_state import process

__all__ = ["connect", "servers_of_attempt"]

_CONNECT_SECONDS = 60.0
_CLEANUP_SECONDS = 10.0


class ServerConnection:
    """A server that we have connected, and the number of attempts that use it."""

    def __init__(self, server: MCPServer) -> None:
        self.server = server
        self.user_count = 0
        # Connected in parallel, each server has a task of its own, in which it is also cleaned up:
        # a server over stdio cannot be cleaned up by another task.
        self._manager = MCPServerManager(
            [server],
            connect_timeout_seconds=_CONNECT_SECONDS,
            cleanup_timeout_seconds=_CLEANUP_SECONDS,
            strict=True,
            suppress_cancelled_error=False,
            connect_in_parallel=True,
        )
        self._connected = asyncio.ensure_future(self._manager.connect_all())
        self.is_closed = asyncio.Event()

    async def wait_until_connected(self) -> None:
        """Wait for the connection; raise the error with which it failed."""
        await asyncio.shield(self._connected)

    async def close(self) -> None:
        """End the connection, also one that is being made."""
        if self._connected.cancel():
            with suppress(asyncio.CancelledError, Exception):
                await self._connected
        await self._manager.cleanup_all()


class ConnectedServers(dict[int, ServerConnection]):
    """The connections of this process, by the identity of their servers."""


_attempt_connections: contextvars.ContextVar[list[ServerConnection] | None]
_attempt_connections = contextvars.ContextVar("agentic_mcp_servers", default=None)
"""The connections that the present attempt uses."""


@asynccontextmanager
async def servers_of_attempt() -> AsyncIterator[None]:
    """Let agents connect their servers in this block, and clean them up after the outermost one."""
    if _attempt_connections.get() is not None:
        yield
        return
    used: list[ServerConnection] = []
    token = _attempt_connections.set(used)
    try:
        yield
    finally:
        _attempt_connections.reset(token)
        await _uninterrupted(_release(used))


async def connect(servers: Iterable[MCPServer]) -> None:
    """Connect the servers of an agent that are not connected yet."""
    used = _attempt_connections.get()
    if used is None:
        return
    for server in servers:
        connection = await _connection_of(server)
        if connection is None:
            continue
        if connection not in used:
            used.append(connection)
            connection.user_count += 1
        await connection.wait_until_connected()


async def _connection_of(server: MCPServer) -> ServerConnection | None:
    """Return our connection of a server, a new one if need be, or None if it is the host's."""
    connections = process.get(ConnectedServers)
    found = connections.get(id(server))
    while found is not None and not found.user_count:  # It is being closed.
        await found.is_closed.wait()
        found = connections.get(id(server))
    if found is None and getattr(server, "session", server) is None:
        found = connections[id(server)] = ServerConnection(server)
    return found


async def _release(used: list[ServerConnection]) -> None:
    """Close the connections that no other attempt uses."""
    connections = process.get(ConnectedServers)
    for connection in used:
        connection.user_count -= 1
        if not connection.user_count:
            try:
                await connection.close()
            finally:
                del connections[id(connection.server)]
                connection.is_closed.set()


async def _uninterrupted(work: Any) -> None:
    """Await a coroutine to its end, even if this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            is_cancelled = True
    task.result()
    if is_cancelled:
        raise asyncio.CancelledError
