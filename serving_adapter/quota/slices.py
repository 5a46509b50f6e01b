"""A slice of a tenant's quotas: decided upon in this process, in about a microsecond. Pure; seconds, monotonic.

A slice was taken from every quota of its tenant when it was granted, so that what is admitted out of it passes none. It
admits nothing that it cannot hold whole: that is asked of the service, which may shrink it.
"""

from __future__ import annotations


class Slice:
    """What is left of a slice, and the requests that were admitted out of it."""

    __slots__ = ("in_flight", "input_tokens", "lease_id", "max_tokens", "output_tokens", "priority", "requests",
                 "settled_no", "slots", "until", "used_output", "used_requests")  # fmt: skip

    def __init__(self, lease_id: str, until: float, priority: int = 0) -> None:
        self.lease_id = lease_id
        self.until = until
        """When it stops admitting: its time from before it was asked for."""
        self.priority = priority
        self.max_tokens: int | None = None
        """Of a request that does not say; None if that is not known."""
        self.requests = self.input_tokens = self.output_tokens = self.slots = 0
        self.in_flight: dict[tuple[str, int], tuple[int, int]] = {}
        self.settled_no = 0
        """How many requests out of it were settled: the number of each, by which one that is told twice is known."""
        self.used_requests = self.used_output = 0
        """Since somebody asked: what the next slice should hold."""

    def add(self, requests: int, input_tokens: int, output_tokens: int, slots: int, until: float) -> None:
        """More was granted, and longer."""
        self.requests += requests
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.slots += slots
        self.until = max(self.until, until)

    def admit(self, request_id: str, attempt: int, input_tokens: int, output_cap: int, now: float) -> bool:
        """Take a request's bound out of the slice; False if it does not hold it, or its time is over.

        What was admitted before is admitted again, once.
        """
        key = (request_id, attempt)
        if key in self.in_flight:
            return True
        if (
            now >= self.until
            or self.requests < 1
            or self.slots < 1
            or self.output_tokens < output_cap
            or self.input_tokens < input_tokens
            or input_tokens < 0
            or output_cap < 0
        ):
            return False
        self.requests -= 1
        self.slots -= 1
        self.input_tokens -= input_tokens
        self.output_tokens -= output_cap
        self.in_flight[key] = (input_tokens, output_cap)
        self.used_requests += 1
        self.used_output += output_cap
        return True

    def settle(self, request_id: str, attempt: int, input_tokens: int, output_tokens: int) -> bool:
        """A request has ended: what it did not use is the slice's again. False if it is not of this slice."""
        bound = self.in_flight.pop((request_id, attempt), None)
        if bound is None:
            return False
        self.input_tokens += bound[0] - input_tokens
        self.output_tokens += bound[1] - output_tokens
        self.slots += 1
        return True
