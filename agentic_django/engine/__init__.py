"""The life of a run as data and rules. Nothing here imports the Agents SDK or handles HTTP."""
