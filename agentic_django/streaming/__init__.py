"""Live updates: one reader per process, and the messages that it sends to each subscriber."""
