"""Presents approvals as a title, facts and a form, and reads the values of a submitted form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.text import capfirst
from django.utils.translation import gettext as _

from agentic_django import permissions
from agentic_django.engine import approval_requests, approvals
from agentic_django.models import AgentRun, ToolApproval
from agentic_django.permissions import Viewer
from agentic_django.presentation.outputs import cell, is_record, parsed, readable, shortened
from agentic_django.presentation.wording import in_words
from agentic_django.serialization import printable

__all__ = [
    "PREFIX",
    "ApprovalView",
    "FormField",
    "as_seen_by",
    "form_values",
    "inbox",
    "open_for_run",
]

MAX_SHOWN = 200
PREFIX = "field."
"""The prefix of the names of form fields."""

Kind = ToolApproval.Kind


@dataclass(frozen=True, slots=True)
class FormField:
    """One form field. ``kind`` is text, number, checkbox, choice or json."""

    name: str
    label: str
    kind: str
    value: str = ""
    choices: tuple[str, ...] = ()
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class ApprovalView:
    """An approval as a user sees it. ``can_decide`` is whether this user may decide it."""

    approval: ToolApproval
    can_decide: bool
    user: Any = None

    @property
    def title(self) -> str:
        """The question, as a sentence."""
        row = self.approval
        names = {"tool": in_words(printable(row.tool)), "agent": in_words(printable(row.agent))}
        match row.kind:
            case Kind.QUESTION:
                return printable(row.question)
            case Kind.INTENT:
                return (
                    _("“%(tool)s” was interrupted and may have run. How should the agent continue?")
                    % names
                )
        if row.question:
            return printable(row.question)
        return _("Allow %(agent)s to use “%(tool)s”?") % names

    @property
    def action(self) -> str:
        """The label of the approve button: the host's, or the name of the tool."""
        return printable(self.approval.action) or in_words(printable(self.approval.tool))

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The arguments, as pairs of label and text."""
        value = self.approval.effective_arguments
        if not isinstance(value, dict):
            return [] if value in (None, "") else [(_("Arguments"), readable(value))]
        found = []
        for name, each in value.items():
            is_plain = not isinstance(each, dict | list) or is_record({"": each})
            text = cell(each) if is_plain else shortened(readable(each))
            found.append((in_words(printable(name)), text))
        return found

    @property
    def fields(self) -> list[FormField]:
        """The form fields: the arguments of a call, or the form of a question."""
        schema, arguments = self.approval.schema or {}, self.approval.arguments
        values = arguments if isinstance(arguments, dict) else {}
        found = []
        for name, declared in schema.get("properties", {}).items():
            rule = _rule(schema, declared)
            value = values.get(name, rule.get("default"))
            text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
            choices = tuple(map(str, rule.get("enum", ())))
            kind = "choice" if choices else _KINDS.get(str(rule.get("type")), "json")
            is_required = name in schema.get("required", ()) and kind != "checkbox"
            label = in_words(printable(name))
            found.append(FormField(name, label, kind, printable(text), choices, is_required))
        return found

    @property
    def can_change(self) -> bool:
        """Whether the user may change the arguments before approving the call."""
        return self.approval.is_editable and bool(self.fields)

    @property
    def needs_text(self) -> bool:
        """Whether the answer is free text."""
        return self.approval.kind == Kind.QUESTION and not (self.approval.options or self.fields)

    @property
    def outcome(self) -> str:
        """The decision and the person who made it; empty while the approval is open."""
        row = self.approval
        if row.is_open:
            return ""
        decision = capfirst(row.get_decision_display())
        if row.decided_by is None:
            return decision
        if row.decided_by == self.user:
            return _("%(decision)s by you") % {"decision": decision}
        return _("%(decision)s by %(name)s") % {"decision": decision, "name": row.decided_by}


def open_for_run(run: AgentRun) -> list[ApprovalView]:
    """Return the open approvals of a waiting run as its owner sees them, oldest first."""
    if run.status != AgentRun.Status.WAITING:
        return []
    rows = approval_requests.approval_rows().open().filter(run=run).select_related("run__owner")
    return [as_seen_by(row, row.run.owner) for row in rows]


def as_seen_by(approval: ToolApproval, user: Any) -> ApprovalView:
    """Return an approval as a user sees it."""
    return ApprovalView(approval, permissions.may_decide(user, approval), user)


def inbox(user: Any, viewer: Viewer) -> list[ApprovalView]:
    """Return the open approvals that a user may decide, oldest first."""
    found = approvals.awaiting(user, viewer)[:MAX_SHOWN]
    return [ApprovalView(approval, can_decide=True, user=user) for approval in found]


# Forms


def _rule(schema: Mapping[str, Any], rule: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a property. References are resolved, and an optional null is removed."""
    if "$ref" in rule:
        name = str(rule["$ref"]).rpartition("/")[2]
        return {**schema.get("$defs", {}).get(name, {}), **rule}
    kinds = [kind for kind in rule.get("anyOf", ()) if kind.get("type") != "null"]
    return {**rule, **_rule(schema, kinds[0])} if len(kinds) == 1 else rule


_KINDS = {"string": "text", "integer": "number", "number": "number", "boolean": "checkbox"}


def form_values(approval: ToolApproval, posted: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a submitted form. A value that cannot be parsed stays a string."""
    schema = approval.schema or {}
    values: dict[str, Any] = {}
    for name, declared in schema.get("properties", {}).items():
        rule, text = _rule(schema, declared), posted.get(PREFIX + name, "")
        kind = rule.get("type")
        if kind == "boolean":
            values[name] = text == "on"
        elif text == "" and {"type": "null"} in declared.get("anyOf", ()):
            values[name] = None
        elif text != "" or kind in (None, "string"):  # Else missing; validation may reject that.
            values[name] = text if kind == "string" or rule.get("enum") else parsed(text)
    return values
