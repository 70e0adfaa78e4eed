"""A host whose streams are short, and wake each other as the environment says."""

import os

from tests.settings import *  # noqa: F403

AGENTIC_DJANGO_STREAM_SECONDS = 3.0
AGENTIC_DJANGO_REDIS_URL = os.environ.get("AGENTIC_TEST_WAKEUP_URL")
