"""A help desk for a small shop: the example of agentic_django, and its demo."""
