"""A host whose streams and leases are short, as the environment says."""

import os

from tests.settings import *  # noqa: F403

AGENTIC_DJANGO_STREAM_SECONDS = float(os.environ.get("AGENTIC_TEST_STREAM_SECONDS", "60"))
AGENTIC_DJANGO_LEASE_SECONDS = float(os.environ.get("AGENTIC_TEST_LEASE_SECONDS", "60"))
AGENTIC_DJANGO_REDIS_URL = os.environ.get("AGENTIC_TEST_WAKEUP_URL")
