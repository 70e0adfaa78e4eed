"""Images that tools return and models generate, read from the checkpoints of a run.

Images on other servers are never loaded, because a request would reveal what a user reads.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentic_django.models import AgentRun, StepCheckpoint, database

__all__ = ["Image", "find_image", "image_numbers"]

TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
"""The types that are served. None of them can contain a script."""

_DATA = re.compile(rf"data:({'|'.join(map(re.escape, TYPES))});base64,([A-Za-z0-9+/=\s]+)")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
_SIGNATURES = {
    b"\x89PNG": TYPES[0],
    b"\xff\xd8\xff": TYPES[1],
    b"GIF8": TYPES[2],
    b"RIFF": TYPES[3],
}

Kind = StepCheckpoint.Kind


@dataclass(frozen=True, slots=True)
class Image:
    """The content of an image."""

    content_type: str
    content: bytes


def image_numbers(call_id: str, output: Any) -> list[int]:
    """Return the numbers, from 1, of the images in the output of a call."""
    if not _NAME.fullmatch(call_id):
        return []
    return [number for number, _ in enumerate(_parts(output), 1)]


def _parts(output: Any) -> Iterator[dict[str, Any]]:
    for part in output if isinstance(output, list) else [output]:
        match part:
            case {"type": "image" | "input_image", "image_url": str(url)} if _DATA.fullmatch(url):
                yield part
            case {"type": "generated_image"}:
                yield part


def find_image(run: AgentRun, call_id: str, number: int) -> Image | None:
    """Return an image by its call and number, or None if it does not exist."""
    if not _NAME.fullmatch(call_id):
        return None
    rows = StepCheckpoint.objects.using(database()).filter(run=run).order_by("-id")
    made = rows.filter(kind=Kind.TOOL, key__endswith=f":{call_id}").first()
    if made is not None:
        parts = list(_parts(made.result))
        url = parts[number - 1].get("image_url") if 0 < number <= len(parts) else ""
        match = _DATA.fullmatch(url) if isinstance(url, str) else None
        return _image(match[1], match[2]) if match else None
    answers = rows.filter(kind=Kind.MODEL).values_list("result", flat=True).iterator()
    items = (item for result in answers for item in (result or {}).get("output") or ())
    found = next((item for item in items if _is_generated(item, call_id)), None)
    return _with_detected_type(str(found.get("result") or "")) if found and number == 1 else None


def _is_generated(item: Any, call_id: str) -> bool:
    match item:
        case {"type": "image_generation_call", "id": found}:
            return bool(found == call_id)
    return False


def _with_detected_type(encoded: str) -> Image | None:
    """Return an image whose type is detected from its first bytes."""
    image = _image("", encoded)
    if image is None:
        return None
    kind = next((k for start, k in _SIGNATURES.items() if image.content.startswith(start)), "")
    return Image(kind, image.content) if kind else None


def _image(content_type: str, encoded: str) -> Image | None:
    try:
        return Image(content_type, base64.b64decode("".join(encoded.split()), validate=True))
    except (binascii.Error, ValueError):
        return None
