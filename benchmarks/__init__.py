"""Measurements, each a command that prints JSON: ``python -m benchmarks.plain_run``."""
