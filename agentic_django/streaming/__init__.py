"""Live updates: one database reader per process, and the messages for each subscriber."""
