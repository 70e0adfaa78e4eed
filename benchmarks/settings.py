"""The host project of benchmarks that run in several processes.

Environment variables configure it:

``BENCH_POSTGRES``  the folder of PostgreSQL's socket
``BENCH_REDIS``     the port of Valkey
``BENCH_TASKS``     ``rq`` or ``rows``
``BENCH_LIMIT``     the concurrency limit, if any
"""

import os

SECRET_KEY = "benchmarks only"  # noqa: S105 - it keeps nothing
USE_TZ = True
ROOT_URLCONF = "benchmarks.site"
ALLOWED_HOSTS = ["testserver"]
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_htmx",
    "django_rq",
    "agentic_django",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": os.environ.get("BENCH_POSTGRES", ""),
        "CONN_MAX_AGE": 600,
    }
}
RQ_QUEUES = {
    "default": {
        "HOST": "127.0.0.1",
        "PORT": int(os.environ.get("BENCH_REDIS", "6379")),
        "DB": 0,
        "DEFAULT_TIMEOUT": 1200,
    }
}
_BACKENDS = {"rq": "django_tasks_rq.RQBackend", "rows": "agentic_django.worker.backend.RowBackend"}
TASKS = {"default": {"BACKEND": _BACKENDS[os.environ.get("BENCH_TASKS", "rq")]}}
LOGGING_CONFIG = None

AGENTIC_DJANGO_AGENT_REGISTRY = "benchmarks.site.agents"
AGENTIC_DJANGO_DEFAULT_AGENT_KEY = "plain"
AGENTIC_DJANGO_RATE_LIMIT = None
if limit := os.environ.get("BENCH_LIMIT"):
    AGENTIC_DJANGO_CONCURRENCY_LIMIT = int(limit)
