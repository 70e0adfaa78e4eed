"""Tests of agentic_django.concurrency."""
