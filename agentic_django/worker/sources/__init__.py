"""What wakes the claim loop of a worker process: PostgreSQL, or a queue of RQ."""
