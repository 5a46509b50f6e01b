"""What one can ask of billing: one module per use case. Each loads, decides with the pure core, stores."""
