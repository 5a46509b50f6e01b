"""Who asks, what they may ask, and what of it reaches the engine: tenants kept apart. Values in, values out."""
