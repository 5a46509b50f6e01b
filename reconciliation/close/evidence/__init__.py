"""The evidence of a close: written, rendered, and verified with nothing but itself (docs/spec/money.md 11.4)."""
