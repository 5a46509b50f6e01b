"""What lies in a spool, boot by boot: for people, without changing anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving_adapter.shipping.position import load
from serving_adapter.spool.folders import boots
from serving_adapter.spool.recovery import replay


@dataclass(frozen=True, slots=True)
class BootStatus:
    """A boot: how far it is, how far Kafka has it. `state`: `running or broken off`, `ended`, `shipped`."""

    replica_id: str
    boot_id: str
    state: str
    started: int
    ended: int
    open: int
    last_seq: int
    shipped: int
    poison: int
    damaged: int
    bytes: int


def spool_status(root: Path) -> list[BootStatus]:
    """Every boot below a root. Raises SpoolUnreadable."""
    found = []
    for folder in boots(root):
        shipped = load(folder)
        state, _, damage = replay(folder)
        told = "shipped" if shipped.done else "ended" if state.farewell is not None else "running or broken off"
        size = sum(folder.segment(number).stat().st_size for number in folder.segments())
        found.append(
            BootStatus(
                folder.replica_id, folder.boot_id, told, state.started, state.ended, len(state.open), state.last_seq,
                shipped.events, shipped.poison, len(damage), size,
            )
        )  # fmt: skip
    return found
