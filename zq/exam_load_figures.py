"""What a load run has seen: latencies by kind of call, refusals, and what became of it all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

KINDS: Final = ("login", "heartbeat", "segment", "finish")
SAID_MAX: Final = 5


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; 0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


@dataclass
class Kind:
    """Calls of one kind."""

    took_s: list[float] = field(default_factory=list)
    errors: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "calls": len(self.took_s) + self.errors,
            "errors": self.errors,
            "p50_ms": round(percentile(self.took_s, 0.50) * 1000, 2),
            "p99_ms": round(percentile(self.took_s, 0.99) * 1000, 2),
            "max_ms": round(max(self.took_s, default=0.0) * 1000, 2),
        }


@dataclass
class Figures:
    kinds: dict[str, Kind] = field(default_factory=lambda: {kind: Kind() for kind in KINDS})
    said: Counter[str] = field(default_factory=Counter)
    """What went wrong, and how often."""
    late_s: list[float] = field(default_factory=list)
    """How long after its time each call was begun: the generator's own doing."""
    sent_bytes: int = 0

    def done(self, kind: str, took_s: float) -> None:
        self.kinds[kind].took_s.append(took_s)

    def failed(self, kind: str, why: str) -> None:
        self.kinds[kind].errors += 1
        self.said[f"{kind}: {why}"[:300]] += 1

    @property
    def errors(self) -> int:
        return sum(kind.errors for kind in self.kinds.values())

    def line(self, second: float) -> str:
        """Progress, for a person."""
        parts = [f"{second:6.0f} s"]
        for name, kind in self.kinds.items():
            if kind.took_s or kind.errors:
                recent = kind.took_s[-2000:]
                parts.append(f"{name} {len(kind.took_s)} (p99 {percentile(recent, 0.99) * 1000:.0f} ms)")
        parts.append(f"errors {self.errors}")
        return " · ".join(parts)


@dataclass
class Outcome:
    """What the system says of it afterwards."""

    segments_acknowledged: int = 0
    segments_found: int = 0
    """On disk, or in a finished video."""
    lost: list[str] = field(default_factory=list)
    """Students of whom something is missing, with what."""
    finished: int = 0
    merged: int = 0
    merges_failed: int = 0
    merges_open: int = 0
    """Not done when waiting for them ended."""
    unaccounted_jobs: int = 0
    """As `zq audit`: accepted, and in no state."""


def report(figures: Figures, outcome: Outcome, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        **facts,
        "ok": not figures.errors and not outcome.lost and not outcome.merges_failed and not outcome.unaccounted_jobs,
        "calls": {name: kind.as_json() for name, kind in figures.kinds.items()},
        "errors": figures.errors,
        "errors_said": dict(figures.said.most_common(SAID_MAX)),
        "begun_late_p99_ms": round(percentile(figures.late_s, 0.99) * 1000, 2),
        "sent_mib": round(figures.sent_bytes / (1 << 20), 1),
        "segments": {
            "acknowledged": outcome.segments_acknowledged,
            "found": outcome.segments_found,
            "lost": outcome.lost[:20],
            "students_with_loss": len(outcome.lost),
        },
        "merges": {
            "finished_students": outcome.finished,
            "done": outcome.merged,
            "failed": outcome.merges_failed,
            "open": outcome.merges_open,
        },
        "unaccounted_jobs": outcome.unaccounted_jobs,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The report for a person."""
    shown = [f"{'call':<10} {'calls':>8} {'errors':>7} {'p50 ms':>9} {'p99 ms':>9} {'max ms':>9}"]
    for name, kind in found["calls"].items():
        shown.append(
            f"{name:<10} {kind['calls']:>8} {kind['errors']:>7} {kind['p50_ms']:>9.1f} {kind['p99_ms']:>9.1f} "
            f"{kind['max_ms']:>9.1f}"
        )
    shown += [f"  {count} × {said}" for said, count in found["errors_said"].items()]
    segments, merges = found["segments"], found["merges"]
    shown.append(
        f"segments: {segments['acknowledged']} acknowledged, {segments['found']} found "
        f"({found['sent_mib']:.0f} MiB sent); calls begun late: p99 {found['begun_late_p99_ms']:.0f} ms"
    )
    shown += [f"  LOST: {text}" for text in segments["lost"]]
    shown.append(
        f"merges: {merges['finished_students']} students finished, {merges['done']} merged, {merges['failed']} failed, "
        f"{merges['open']} still open"
    )
    shown.append(f"jobs that are not accounted for: {found['unaccounted_jobs']}")
    shown.append("ok" if found["ok"] else "NOT OK")
    return shown
