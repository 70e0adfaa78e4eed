"""Tests of agentic_django.admin."""
