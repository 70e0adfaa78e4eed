"""Executes runs: one attempt at a time on a queue's thread, or hundreds in one process."""
