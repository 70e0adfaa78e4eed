"""The host project of the tests.

The environment chooses what a process runs on; the tests set these for the processes they start:

``AGENTIC_TEST_DATABASE``      ``sqlite`` (default) or ``postgres``
``AGENTIC_TEST_DATABASE_URL``  the database itself, ``sqlite:///file`` or ``postgresql://…``
``AGENTIC_TEST_REDIS_PORT``    the port of the Redis-compatible server
``AGENTIC_TEST_TASKS``         a key of ``TASK_BACKENDS``: ``immediate`` by default
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from agents import set_tracing_disabled
from django.utils.csp import CSP

set_tracing_disabled(True)

ROOT = Path(__file__).resolve().parent.parent


def database(url: str) -> dict[str, Any]:
    """Return an entry of ``DATABASES`` for a database's address."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return _sqlite(parts.path)
    return _postgres(parts.path.lstrip("/"), parse_qs(parts.query)["host"][0])


def _sqlite(name: str) -> dict[str, Any]:
    # Threads and processes write at once: IMMEDIATE spares them failed lock upgrades, WAL lets
    # readers go on meanwhile, and no test needs to survive a power cut.
    pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
    options = {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": pragmas}
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": options}


def _postgres(name: str, host: str) -> dict[str, Any]:
    engine = "django.db.backends.postgresql"
    return {"ENGINE": engine, "NAME": name, "USER": "postgres", "HOST": host}


def _default_database() -> dict[str, Any]:
    if url := os.environ.get("AGENTIC_TEST_DATABASE_URL"):
        return database(url)
    if os.environ.get("AGENTIC_TEST_DATABASE", "sqlite") == "postgres":
        return _postgres("postgres", "")  # The host is known once a fixture starts the server.
    return _sqlite(":memory:")  # A fixture gives the tests a file, which other threads see too.


def rq_queues(port: int) -> dict[str, Any]:
    """Return ``RQ_QUEUES`` for the server on a port."""
    return {"default": {"HOST": "127.0.0.1", "PORT": port, "DB": 0, "DEFAULT_TIMEOUT": 1200}}


TASK_BACKENDS: dict[str, dict[str, Any]] = {
    "immediate": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"},
    "django_tasks": {"BACKEND": "django_tasks.backends.immediate.ImmediateBackend"},
    "rq": {"BACKEND": "django_tasks_rq.RQBackend"},
    "database": {"BACKEND": "django_tasks_db.DatabaseBackend"},
    "rows": {"BACKEND": "agentic_django.worker.backend.RowBackend"},
    "threads": {
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {"MAX_WORKERS": 4},
    },
}

SECRET_KEY = "only-for-tests"
DEBUG = False
USE_TZ = True
TIME_ZONE = "UTC"
ALLOWED_HOSTS = ["testserver", "127.0.0.1", "localhost"]
DATABASES = {"default": _default_database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TASKS = {"default": TASK_BACKENDS[os.environ.get("AGENTIC_TEST_TASKS", "immediate")]}
RQ_QUEUES = rq_queues(int(os.environ.get("AGENTIC_TEST_REDIS_PORT", "6379")))
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "django_rq",
    "django_tasks_db",
    "agentic_django",
    "example.shop",
    "example.reports",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.csp",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
SECURE_CSP = {
    "default-src": [CSP.NONE],
    "script-src": [CSP.SELF, CSP.NONCE],
    "style-src": [CSP.SELF, CSP.NONCE],
    "img-src": [CSP.SELF, "data:"],
    "font-src": [CSP.SELF],
    "connect-src": [CSP.SELF],
    "form-action": [CSP.SELF],
    "frame-ancestors": [CSP.NONE],
    "base-uri": [CSP.NONE],
}
ROOT_URLCONF = "tests.urls"
ASGI_APPLICATION = "tests.asgi.application"
STATIC_URL = "/static/"
LOGIN_URL = "/admin/login/"

AGENTIC_DJANGO_AGENT_REGISTRY = "tests.support.agents.agents"
AGENTIC_DJANGO_RATE_LIMIT = None
AGENTIC_DJANGO_REFUSED_RATE_LIMIT = None
