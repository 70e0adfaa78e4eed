"""Event loop, threads, batches and messages between processes. Nothing here knows about runs."""
