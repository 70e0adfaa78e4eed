"""Tests of agentic_django.runtime."""
