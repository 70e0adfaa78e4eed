"""What a browser, HTMX or a JSON client is shown."""
