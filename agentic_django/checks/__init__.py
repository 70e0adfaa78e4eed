"""System checks that find wrong settings and say how to fix them.

Importing the package registers them. Run them alone with
``manage.py check --tag agentic_django``. None of them runs an agent.
"""

from agentic_django.checks import (
    agents,
    approvals,
    database,
    notifications,
    pages,
    queues,
    settings,
)
from agentic_django.checks.reporting import TAG

__all__ = [
    "TAG",
    "agents",
    "approvals",
    "database",
    "notifications",
    "pages",
    "queues",
    "settings",
]
