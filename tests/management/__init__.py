"""Tests of agentic_django.management."""
