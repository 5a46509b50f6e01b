"""The gates of a close: equalities, each with the list of what differs (docs/spec/money.md 11.3, docs/close.md)."""
