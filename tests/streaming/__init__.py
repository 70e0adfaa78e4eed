"""Tests of agentic_django.streaming."""
