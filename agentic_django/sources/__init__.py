"""Where a worker with many slots takes its runs from; siblings that do not import each other."""
