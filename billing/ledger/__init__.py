"""The journal: double entry, balances in both times, the hash chain."""
