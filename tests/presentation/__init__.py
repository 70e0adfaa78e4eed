"""Tests of agentic_django.presentation."""
