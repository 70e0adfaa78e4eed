"""Tests of agentic_django.templatetags."""
