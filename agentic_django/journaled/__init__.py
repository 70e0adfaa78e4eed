"""Models and tools that record what they return, and return what is recorded.

Hooks cannot replay a result and the SDK's run states are kept once a turn, so the journal sits
in the model and in the tools themselves. Outside of a run they do what they always did, and a
host's agents keep their shape.
"""

from agentic_django.journaled.agents import instrumented
from agentic_django.journaled.models import JournaledProvider, journaled_model
from agentic_django.journaled.tools import asks, at_most_once, editable, journaled_tool, worded

__all__ = [
    "JournaledProvider",
    "asks",
    "at_most_once",
    "editable",
    "instrumented",
    "journaled_model",
    "journaled_tool",
    "worded",
]
