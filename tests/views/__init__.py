"""Tests of agentic_django.views."""
