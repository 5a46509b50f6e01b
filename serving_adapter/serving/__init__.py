"""The adapter within an engine's HTTP server: one ASGI middleware, and what it needs for the whole process."""
