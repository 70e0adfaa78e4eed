"""Tests of the project: documentation, scripts, examples and hosts."""
