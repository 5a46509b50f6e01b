"""A month's close on the command line, as two people do it."""

from __future__ import annotations

from collections.abc import Callable

Tollbook = Callable[..., str]
"""Runs a command that must end with `code` (default 0) and returns what it printed."""
WORTH = ("--low", "0", "--high", "1", "--currency", "USD")


def close_by_two(tollbook: Tollbook, month: str, now: str, *, waived: str = "") -> None:
    """Close a month: ada runs it, bob approves, ada runs it again."""
    draw_up(tollbook, month, now, waived=waived)
    tollbook("close", "approve", month, "--as", "bob")
    tollbook("close", "explain", month, "--all", "--reason", "traffic of a test", "--as", "bob")
    tollbook("close", "run", month, "--test", "--now", now, "--as", "ada")


def draw_up(tollbook: Tollbook, month: str, now: str, *, waived: str = "") -> None:
    """Have every draft of a month compared. `waived`: the gate that holds it up until bob waives what it finds."""
    run = ("close", "run", month, "--test", "--now", now, "--as", "ada")
    if waived:
        tollbook(*run, code=1)
        tollbook("close", "waive", month, waived, "--all", "--reason", "looked at", *WORTH, "--as", "bob")
    tollbook(*run)
