"""The life cycle of a run. This package does not import the Agents SDK and does not handle HTTP."""
