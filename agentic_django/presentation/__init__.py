"""Turns rows into what people see: messages, timelines, words, HTML."""
