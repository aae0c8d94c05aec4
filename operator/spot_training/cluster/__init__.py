"""The way to the API server: thin, asynchronous, raw JSON."""
