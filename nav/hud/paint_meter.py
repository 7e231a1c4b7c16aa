"""Counts painted pictures and the age of their poses at the end of paint. No Qt."""

from __future__ import annotations

from collections import deque

__all__ = ["PaintMeter"]

_SPAN_NS = 1_000_000_000


class PaintMeter:
    """Rates over the last second and pose ages over the last second.

    Every picture counts once, however often it is painted. Ages run from the arrival of the last byte of the newest
    pose in the picture to the end of the paint that first showed it.
    """

    def __init__(self) -> None:
        self._times: dict[str, deque[int]] = {}
        self._last: dict[str, int] = {}
        self._ages: deque[tuple[int, float]] = deque()

    def painted(self, pane: str, picture: int, arrival_ns: int, painted_ns: int) -> bool:
        """Note one painted picture (``picture``: anything that differs between pictures); False if it was a repeat."""
        if self._last.get(pane) == picture:
            return False
        self._last[pane] = picture
        times = self._times.setdefault(pane, deque())
        times.append(painted_ns)
        while times and times[0] <= painted_ns - _SPAN_NS:
            times.popleft()
        if arrival_ns:
            self._ages.append((painted_ns, (painted_ns - arrival_ns) / 1e6))
        return True

    def fps(self, pane: str, now_ns: int) -> float:
        """Pictures painted in the last second."""
        return float(sum(1 for t in self._times.get(pane, ()) if t > now_ns - _SPAN_NS))

    def age_p95_ms(self, now_ns: int) -> float | None:
        """95th percentile of the pose ages of the last second, None without any."""
        while self._ages and self._ages[0][0] <= now_ns - _SPAN_NS:
            self._ages.popleft()
        if not self._ages:
            return None
        ages = sorted(age for _, age in self._ages)
        return ages[min(len(ages) - 1, int(0.95 * len(ages)))]
