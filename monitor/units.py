"""Numbers as people read them, in few cells: durations, sizes, counts, rates, times of day."""

from __future__ import annotations

import math
from datetime import datetime, tzinfo


def duration(seconds: float) -> str:
    """At most six cells: 0.4s 12s 3m02 2h05 4d07."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}"


def size(size_bytes: float) -> str:
    """At most eight cells: 512 B, 3.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 99.5 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def count(number: int) -> str:
    """At most six cells: 99999, then 100k, 1.2M."""
    if number < 100_000:
        return str(number)
    if number < 1_000_000:
        return f"{number // 1000}k"
    if number < 999_950_000:  # from here on it would be rounded to 1000.0M
        return f"{number / 1e6:.1f}M"
    return f"{number / 1e9:.1f}G"


def rate(per_s: float | None) -> str:
    """At most five cells; a dash while it is not known."""
    if per_s is None or not math.isfinite(per_s):
        return "-"
    if per_s < 99.95:
        return f"{per_s:.1f}"
    return count(round(per_s))


def microseconds(value_us: int) -> str:
    if value_us < 1000:
        return f"{value_us} us"
    return f"{value_us / 1000:.1f} ms" if value_us < 1_000_000 else f"{value_us / 1e6:.1f} s"


def moment(unix_ms: int, zone: tzinfo) -> str:
    """Date, time and offset; a dash for 0 and for what no calendar has."""
    if unix_ms <= 0:
        return "-"
    try:
        return datetime.fromtimestamp(unix_ms / 1000, zone).strftime("%Y-%m-%d %H:%M:%S %z")
    except (OverflowError, ValueError, OSError):
        return "-"
