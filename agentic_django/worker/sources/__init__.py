"""Where a worker process gets its runs: from RQ or from the database."""
