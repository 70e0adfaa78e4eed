"""Settings of the example: SQLite and a pool of threads, so that it needs no server.

``settings_production`` changes them for PostgreSQL and RQ.
"""

from __future__ import annotations

import os
from pathlib import Path

from django.utils.csp import CSP

CHECKOUT = Path(__file__).resolve().parent.parent
STATE = Path(os.environ.get("DEMO_STATE", CHECKOUT / ".demo")).resolve()
STATE.mkdir(parents=True, exist_ok=True)  # SQLite makes its file, but not the directory.

DEBUG = True
SECRET_KEY = os.environ.get("DEMO_SECRET_KEY", "for the demo only; every site makes its own")
ALLOWED_HOSTS = os.environ.get("DEMO_HOSTS", "localhost,127.0.0.1,[::1]").split(",")
USE_TZ = True
STATIC_URL = "static/"
MEDIA_ROOT = STATE / "media"  # What people upload; no address leads there.
ROOT_URLCONF = "example.urls"
ASGI_APPLICATION = "example.asgi.application"
WSGI_APPLICATION = "example.wsgi.application"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "desk"
LOGOUT_REDIRECT_URL = "login"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
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
    }
]

# No inline scripts or styles and no eval: the app works under the strictest policy.
SECURE_CSP = {
    "default-src": [CSP.SELF],
    "script-src": [CSP.SELF, CSP.NONCE],
    "style-src": [CSP.SELF],
    "object-src": [CSP.NONE],
    "base-uri": [CSP.NONE],
    "form-action": [CSP.SELF],
    "frame-ancestors": [CSP.NONE],
}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": STATE / "shop.sqlite3",
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}

TASK_BACKENDS = {
    "threads": "django_tasks_local.ThreadPoolBackend",
    "immediate": "django.tasks.backends.immediate.ImmediateBackend",
}
TASKS = {"default": {"BACKEND": TASK_BACKENDS[os.environ.get("DEMO_TASKS", "threads")]}}

AGENTIC_DJANGO_AGENT_REGISTRY = [
    "example.shop.agents.agents",
    "example.reports.pipeline.agents",
]
AGENTIC_DJANGO_DEFAULT_AGENT_KEY = "support"
AGENTIC_DJANGO_APPROVERS = "example.shop.approvers.may_decide"
AGENTIC_DJANGO_CONTEXT_FACTORY = "example.shop.agents.desk"
AGENTIC_DJANGO_BASE_TEMPLATE = "shop/base.html"
# A short lease: after a worker of the demo is killed, another one continues soon.
AGENTIC_DJANGO_LEASE_SECONDS = 10

# How long the offline model takes for a few words; some more before the first.
SHOP_DEMO_MODEL_PAUSE = float(os.environ.get("DEMO_MODEL_PAUSE", "0.04"))
