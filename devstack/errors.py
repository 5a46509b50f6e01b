"""Failures that a person can do something about."""

from __future__ import annotations


class DevstackError(Exception):
    """An expected failure: what is wrong, and what to do, in one or two lines. Shown without a traceback."""
