"""What is said of many times of one thing."""

from __future__ import annotations

import math
from statistics import fmean, median


def describe(seconds: list[float]) -> dict[str, float]:
    """Milliseconds; the percentile is the nearest rank, which of fewer than 100 times is the maximum."""
    ordered = sorted(seconds)
    return {
        "median_ms": median(ordered) * 1e3,
        "mean_ms": fmean(ordered) * 1e3,
        "p99_ms": ordered[math.ceil(0.99 * len(ordered)) - 1] * 1e3,
        "max_ms": ordered[-1] * 1e3,
        "calls": len(ordered),
    }
