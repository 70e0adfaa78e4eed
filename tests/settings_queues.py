"""A host whose task backend has queues of its own, and not the app's."""

from tests.settings import *  # noqa: F403
from tests.settings import TASKS

TASKS = {alias: {**entry, "QUEUES": ["mail"]} for alias, entry in TASKS.items()}
