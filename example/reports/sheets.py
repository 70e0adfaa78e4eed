"""Reads the files that people upload: sales as comma-separated values."""

from __future__ import annotations

import csv
import io
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from agentic_django.exceptions import UserError

COLUMNS = ("date", "region", "product", "quantity", "price")
MAX_ROWS = 20_000
LONGEST_NAME = 80


class SheetError(UserError):
    """This file cannot be used. The person who uploaded it reads the message."""


def read(data: bytes) -> list[tuple[int, dict[str, str]]]:
    """Return the cells of each row, with the number of its line; raises SheetError."""
    text = _text(data)
    head = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in head else ",")
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        _check_columns(rows.fieldnames)
        found = [(rows.line_num, {n: row[n] or "" for n in COLUMNS}) for row in rows]
    except csv.Error as error:
        raise SheetError(f"Line {rows.line_num} cannot be read: {error}.") from error
    if not found:
        raise SheetError("There are no rows below the names of the columns.")
    if len(found) > MAX_ROWS:
        raise SheetError(f"There are {len(found):,} rows; {MAX_ROWS:,} are allowed.")
    return found


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SheetError("This is not text in UTF-8. Export the sheet as CSV (UTF-8).") from None
    if "\0" in text:
        raise SheetError("This is not a text file. Export the sheet as CSV (UTF-8).")
    return text


def _check_columns(names: Any) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise SheetError(
            f"The first line names no column {missing[0]!r}. It has to name all of: "
            f"{', '.join(COLUMNS)}."
        )


def sale(cells: dict[str, str]) -> dict[str, Any]:
    """Return the values of a row's cells; raise SheetError for invalid ones."""
    quantity = _number(cells["quantity"], "quantity", at_least=1)
    if quantity != int(quantity):
        raise SheetError(f"The quantity {cells['quantity']!r} is not a whole number.")
    return {
        "day": _day(cells["date"]),
        "region": _name(cells["region"], "region"),
        "product": _name(cells["product"], "product"),
        "quantity": int(quantity),
        "amount": int(quantity) * _number(cells["price"], "price", at_least=0),
    }


def _day(text: str) -> date:
    if not text.strip():
        raise SheetError("The date is missing.")
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise SheetError(f"{text[:40]!r} is not a date such as 2026-03-14.") from None


def _name(text: str, column: str) -> str:
    if not text.strip():
        raise SheetError(f"The {column} is missing.")
    if len(text.strip()) > LONGEST_NAME:
        raise SheetError(f"The {column} has more than {LONGEST_NAME} characters.")
    return text.strip()


def _number(text: str, column: str, *, at_least: int) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        raise SheetError(f"The {column} {text[:40]!r} is not a number.") from None
    if not number.is_finite() or not at_least <= number <= 100_000:
        raise SheetError(f"The {column} has to be {at_least} to 100,000, not {text[:40]}.")
    return round(number, 2)
