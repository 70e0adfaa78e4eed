"""Asks the questions of a host's code to a person. The run waits for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from pydantic import BaseModel, ValidationError

from agentic_django.engine.journal import Journal
from agentic_django.exceptions import Declined
from agentic_django.models import ToolApproval
from agentic_django.openai_agents.call_scope import current_call, digest

__all__ = ["ask_person"]

Decision = ToolApproval.Decision


def ask_person(
    journal: Journal,
    question: str,
    *,
    options: Sequence[str],
    schema: type[BaseModel] | None,
    key: str,
) -> Any:
    """Return a person's answer to a question.

    Raises RunSuspended if nobody has answered yet. Raises Declined if the person declined, or if
    the question expired. If the pydantic model rejects an answer, the question is asked again with
    the reason.
    """
    if options and schema is not None:
        raise TypeError("Give options or a schema, not both.")
    outer = current_call()
    prefix = f"ask:{outer.key if outer else ''}:{key or digest([question, list(options)])}"
    text = question
    for number in count(1):
        decided = journal.decided(f"{prefix}#{number}")
        if decided is None:
            form = schema.model_json_schema() if schema else {"type": "string", "minLength": 1}
            raise journal.request(
                f"{prefix}#{number}",
                kind=ToolApproval.Kind.QUESTION,
                agent=journal.run.agent_key,
                question=text,
                options=list(options),
                schema=None if options else form,
            )
        if decided.decision != Decision.ANSWERED:
            is_expired = decided.decision == Decision.EXPIRED
            raise Declined(reason=decided.reason, expired=is_expired)
        if schema is None:
            return decided.answer
        try:
            return schema.model_validate(decided.answer)
        except ValidationError as error:
            text = f"{question}\n\n{error.errors()[0]['msg']}"
