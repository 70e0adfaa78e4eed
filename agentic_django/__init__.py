"""Durable AI agents for Django: chat pages, live status, JSON, admin and operations."""

__version__ = "0.1.0"
