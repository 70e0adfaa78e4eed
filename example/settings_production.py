"""What differs on real servers: PostgreSQL, RQ on a Redis-compatible server, no debug pages."""

from __future__ import annotations

import os

from psycopg.conninfo import conninfo_to_dict

from example.settings import *  # noqa: F403
from example.settings import INSTALLED_APPS

DEBUG = False
INSTALLED_APPS = [*INSTALLED_APPS, "django_rq"]

_postgres = conninfo_to_dict(os.environ["DEMO_DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _postgres["dbname"],
        "USER": _postgres.get("user", ""),
        "PASSWORD": _postgres.get("password", ""),
        "HOST": _postgres.get("host", ""),
        "PORT": _postgres.get("port", ""),
    }
}

TASKS = {"default": {"BACKEND": "django_tasks_rq.RQBackend"}}
# The time-out of the queue lies above that of a run, so that a run ends by its own.
RQ_QUEUES = {"default": {"URL": os.environ["DEMO_REDIS_URL"], "DEFAULT_TIMEOUT": 1200}}
