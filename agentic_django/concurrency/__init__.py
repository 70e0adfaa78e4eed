"""The event loop, threads, batches and messages between processes, independent of runs."""
