"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
from typing import Literal

__all__ = ["parser"]


def parser(
    description: str | None,
    *,
    database: Literal["sqlite", "postgres"] | None = None,
    **defaults: int | float | str,
) -> argparse.ArgumentParser:
    """Return a parser with an option for each default, which has the default's type.

    ``database`` is the default of ``--database``, for benchmarks that run on either database.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    if database is not None:
        parser.add_argument("--database", choices=("sqlite", "postgres"), default=database)
    return parser
