"""What an attempt comes to: its counts, how it ended, and what is told about it per tenant. Values in, values out."""
