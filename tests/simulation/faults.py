"""What goes wrong in the simulator, and how often."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Faults:
    """Probabilities, each for one occasion of its kind; intervals in milliseconds."""

    lose: float = 0.0
    repeat: float = 0.0
    delay_max_ms: int = 3
    cut_every_ms: int = 0
    broker_dies_every_ms: int = 0
    broker_dies_in_round: float = 0.0
    worker_dies_every_ms: int = 0
    worker_freezes_every_ms: int = 0
    slot_dies: float = 0.0
    attempt_fails: float = 0.0
    attempt_rejects: float = 0.0
    attempt_is_long: float = 0.0
    cancel: float = 0.0
    slow_commit: float = 0.0
    failed_commit: float = 0.0
    broker_freezes_every_ms: int = 0
    deafens_every_ms: int = 0
    partitions_every_ms: int = 0
    worker_drains_every_ms: int = 0
    disk_is_low_every_ms: int = 0
    clock_jumps_ms: int = 0
    """At a restart the broker finds its wall clock off by as much, either way."""
    clock_pace: float = 1.0
    """Broker milliseconds for each millisecond of the others."""

    def quiet(self) -> Faults:
        return Faults(clock_pace=self.clock_pace)


ALL_FAULTS = Faults(
    lose=0.02, repeat=0.03, delay_max_ms=60, cut_every_ms=4000, broker_dies_every_ms=15_000, broker_dies_in_round=0.004,
    worker_dies_every_ms=12_000, worker_freezes_every_ms=20_000, slot_dies=0.03, attempt_fails=0.2,
    attempt_rejects=0.03, attempt_is_long=0.1, cancel=0.05, slow_commit=0.05, failed_commit=0.002,
    broker_freezes_every_ms=20_000, deafens_every_ms=6000, partitions_every_ms=40_000, worker_drains_every_ms=40_000,
    disk_is_low_every_ms=40_000, clock_jumps_ms=20_000, clock_pace=1.05,
)  # fmt: skip

RUIN = Faults(
    lose=0.1, repeat=0.3, delay_max_ms=400, cut_every_ms=2000, broker_dies_every_ms=8000, broker_dies_in_round=0.01,
    worker_dies_every_ms=5000, worker_freezes_every_ms=8000, slot_dies=0.2, attempt_fails=0.3, attempt_rejects=0.05,
    attempt_is_long=0.2, cancel=0.2, slow_commit=0.1, failed_commit=0.01, broker_freezes_every_ms=30_000,
    deafens_every_ms=4000, partitions_every_ms=12_000, worker_drains_every_ms=8000, disk_is_low_every_ms=10_000,
    clock_jumps_ms=3_600_000, clock_pace=1.3,
)  # fmt: skip
"""So much that hardly anything gets done: only what must never happen is looked at."""
