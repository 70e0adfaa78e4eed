"""Tests of agentic_django.engine."""
