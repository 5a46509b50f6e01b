"""How the adapter attaches to an engine: the only place that knows vLLM's insides. Imports nothing of it."""
