"""What every benchmark prints and writes: `build/<verb>.json` for machines, a row for `docs/benchmarks.md`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = os.environ.get("QUICK", "") not in ("", "0")
"""A first look in under a minute, instead of figures."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure: the median of its runs, beside a goal and a floor where there are any."""

    value: float
    unit: str
    runs: tuple[float, ...]
    goal: float | None = None
    floor: float | None = None


@dataclass(slots=True)
class Report:
    """The figures of one benchmark run."""

    verb: str
    seed: int
    quick: bool
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    begun: float = field(default_factory=time.monotonic)
    figures: dict[str, Figure] = field(default_factory=dict)

    def add(
        self, key: str, unit: str, runs: Sequence[float], *, goal: float | None = None, floor: float | None = None
    ) -> None:
        """Add a figure and print it."""
        value = round(median(runs), 3)
        self.figures[key] = Figure(value, unit, tuple(round(run, 3) for run in runs), goal, floor)
        beside = "".join(
            f", {name} {given:g}" for name, given in (("goal", goal), ("floor", floor)) if given is not None
        )
        spread = f" ({min(runs):,.2f} to {max(runs):,.2f} in {len(runs)} runs{beside})" if len(runs) > 1 else beside
        print(f"  {key:<28} {value:>12,.2f} {unit}{spread}", flush=True)

    def write(self) -> None:
        """Write `build/<verb>.json`."""
        path = REPOSITORY / "build" / f"{self.verb}.json"
        path.parent.mkdir(exist_ok=True)
        document: dict[str, Any] = {
            "verb": self.verb,
            "commit": _commit(),
            "machine": machine(),
            "started_at": self.started_at.isoformat().replace("+00:00", "Z"),
            "seconds": round(time.monotonic() - self.begun, 1),
            "seed": self.seed,
            "quick": self.quick,
            "figures": {key: asdict(figure) for key, figure in self.figures.items()},
        }
        path.write_text(json.dumps(document, indent=2) + "\n")
        print(f"written: {path.relative_to(REPOSITORY)}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in processors if line.startswith("model name")), "")
    return {"cpus": os.cpu_count(), "cpu": model, "memory_gib": round(memory), "python": platform.python_version()}


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "none"
