"""The tests of agentic_django; they mirror its modules."""
