"""The run's own row: one table of guarded transitions.

A worker's writes are fenced by (key, status running, attempt), and by nothing else, so an
attempt that lost its run changes nothing. A person's verbs are fenced by the status alone.
Nothing here looks first and writes then: the guard is in the write.
"""

from agentic_django.runs.attempts import (
    Change,
    advance,
    bill,
    change,
    ending,
    finish,
    renew,
    together,
)
from agentic_django.runs.claims import claim, claim_due, claim_inline, claim_named
from agentic_django.runs.transitions import TRANSITIONS, Transition, announce, holder, rows
from agentic_django.runs.verbs import (
    WATCH_SECONDS,
    hold_waiting,
    move,
    note,
    refuse_unless_waiting,
    watch,
)

__all__ = [
    "TRANSITIONS",
    "WATCH_SECONDS",
    "Change",
    "Transition",
    "advance",
    "announce",
    "bill",
    "change",
    "claim",
    "claim_due",
    "claim_inline",
    "claim_named",
    "ending",
    "finish",
    "hold_waiting",
    "holder",
    "move",
    "note",
    "refuse_unless_waiting",
    "renew",
    "rows",
    "together",
    "watch",
]
