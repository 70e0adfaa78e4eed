"""The host project of the scenarios: short leases, agents that tell of what they do.

``AGENTIC_TEST_LEASE``        seconds; 3 by default
``AGENTIC_TEST_ATTEMPTS``     the maximum of attempts in a row that come to nothing
``AGENTIC_TEST_CLOCK``        seconds by which this process's clock is ahead of the database's
``AGENTIC_TEST_RUN_SECONDS``  how long a run may take; 120 by default
``AGENTIC_TEST_LIMIT``        the cap on running runs, as JSON
"""

import json
import os
from datetime import UTC, datetime, timedelta

import time_machine

from tests.settings import *  # noqa: F403

AGENTIC_DJANGO_AGENT_REGISTRY = [  # type: ignore[assignment]
    "tests.support.agents.agents",
    "tests.scenarios.agents.agents",
    "tests.scenarios.works.works",
]
AGENTIC_DJANGO_LEASE_SECONDS = float(os.environ.get("AGENTIC_TEST_LEASE", "3"))
AGENTIC_DJANGO_MAX_ATTEMPTS = int(os.environ.get("AGENTIC_TEST_ATTEMPTS", "4"))
AGENTIC_DJANGO_RUN_TIMEOUT_SECONDS = float(os.environ.get("AGENTIC_TEST_RUN_SECONDS", "120"))

if ahead := float(os.environ.get("AGENTIC_TEST_CLOCK", "0")):
    time_machine.travel(datetime.now(UTC) + timedelta(seconds=ahead), tick=True).start()
AGENTIC_DJANGO_CONCURRENCY_LIMIT = json.loads(os.environ.get("AGENTIC_TEST_LIMIT", "null"))
