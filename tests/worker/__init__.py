"""Tests of agentic_django.worker."""
