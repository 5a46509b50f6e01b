"""The gated close of a month (docs/spec/money.md 11, docs/close.md)."""
