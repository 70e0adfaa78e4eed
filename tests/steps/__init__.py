"""Tests of agentic_django.steps."""
