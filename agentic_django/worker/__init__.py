"""Executes runs: one attempt at a time on a task queue's thread, or hundreds in one process."""
