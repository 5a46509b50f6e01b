"""What does not agree, by kind, size and likely cause; written once, closed when it is healed."""
