"""What an operator sees of admission: who decided, what was never settled, whether the service answers. Pure."""

from __future__ import annotations

from serving_adapter.quota import Pool, QuotaGate


def quota_page(gate: QuotaGate | None, places: Pool) -> str:
    """A part of the metrics page; nothing of what is not asked."""
    lines: list[str] = []
    if gate is not None:
        breakers = gate.breakers
        for name, kind, number in (
            ("breaker_open", "gauge", sum(breaker.is_open for breaker in breakers)),
            ("breaker_opened_total", "counter", sum(breaker.opened for breaker in breakers)),
            ("untold", "gauge", gate.waiting),
        ):
            lines += [f"# TYPE tollbook_quota_{name} {kind}", f"tollbook_quota_{name} {number}"]
        lines += ["# TYPE tollbook_quota_total counter"]
        lines += [f'tollbook_quota_total{{what="{what}"}} {number}' for what, number in sorted(gate.counts.items())]
    if places.counts:
        lines += ["# TYPE tollbook_places_total counter"]
        for what, number in sorted(places.counts.items()):
            result, _, tier = what.partition(":")
            lines += [f'tollbook_places_total{{result="{result}",tier="{tier}"}} {number}']
    return "".join(f"{line}\n" for line in lines)
