"""The ASGI application of ``benchmarks.streams``. ``/facts`` returns its statements and memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import site

site.configure(json.loads(os.environ["BENCH_DATABASE"]))

from django.core.asgi import get_asgi_application  # noqa: E402 - needs the settings
from django.db.backends.utils import CursorWrapper  # noqa: E402

_django = get_asgi_application()
_counted = {"statements": 0}
_execute = CursorWrapper.execute


def _counting(self: Any, *args: Any, **kwargs: Any) -> Any:
    _counted["statements"] += 1
    return _execute(self, *args, **kwargs)


CursorWrapper.execute = _counting  # type: ignore[method-assign]


def _facts() -> dict[str, int]:
    status = Path("/proc/self/status").read_text()
    rows = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "statements": _counted["statements"],
        "memory_kb": int(rows["VmRSS"].split()[0]),
        "threads": int(rows["Threads"]),
    }


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer ``/facts``; pass other requests to Django."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    if scope["path"] != "/facts":
        await _django(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(_facts()).encode()})
