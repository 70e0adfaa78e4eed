"""Views for browsers, HTMX and JSON clients: each finds rows, acts on them, and renders them."""
