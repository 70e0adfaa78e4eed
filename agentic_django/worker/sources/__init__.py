"""Wakes the claim loop of a worker process when a run is enqueued, with or without RQ."""
