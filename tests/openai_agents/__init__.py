"""Tests of agentic_django.openai_agents."""
