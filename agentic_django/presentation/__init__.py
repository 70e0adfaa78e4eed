"""Turns rows into messages, timelines, words and HTML for users."""
