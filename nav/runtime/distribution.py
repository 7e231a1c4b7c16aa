"""What a number came to over a run, in memory that does not grow with it."""

from __future__ import annotations

import math
from array import array

__all__ = ["Distribution"]

#: Bins are `FINEST` times `RELATIVE` wide near zero and `RELATIVE` of the value far from it.
RELATIVE, FINEST = 0.001, 0.01
#: Bins on each side of zero: beyond 10^7 is as far as 10^7.
_SIDE = math.ceil(math.asinh(1e7 / FINEST) / RELATIVE)
#: Bins added at a time.
_SLACK = 256


def _zeros(n: int) -> array[int]:
    return array("Q", bytes(8 * n))


class Distribution:
    """Counts values in bins; extremes, last value and number are exact.

    A percentile is within 0.1 % of the value (within 0.00001 near zero) of the linearly interpolated one of all values,
    and never beyond the extremes. The bins are equal steps of ``asinh(value / 0.01)``.
    """

    __slots__ = ("_counts", "_low", "last", "max", "min", "n")

    def __init__(self) -> None:
        self.n = 0
        self.last = self.min = self.max = math.nan
        # Only about as wide as the values seen.
        self._low = 0
        self._counts = _zeros(0)

    def add(self, value: float) -> None:
        """Take one finite value in.

        Raises
        ------
        ValueError
            For a value that is not finite: what is missing is not counted.
        """
        if not math.isfinite(value):
            raise ValueError(f"value {value} is not finite; count only what was measured")
        self.last = value
        if self.n == 0:
            self.min = self.max = value
        elif value < self.min:
            self.min = value
        elif value > self.max:
            self.max = value
        self.n += 1
        k = min(max(round(math.asinh(value / FINEST) / RELATIVE), -_SIDE), _SIDE)
        if not self._counts:
            self._low = k
        if k < self._low:
            more = self._low - k + _SLACK
            self._counts = _zeros(more) + self._counts
            self._low -= more
        elif k >= self._low + len(self._counts):
            self._counts.extend(_zeros(k - self._low - len(self._counts) + _SLACK))
        self._counts[k - self._low] += 1

    def percentile(self, percent: float) -> float | None:
        """The value below which ``percent`` (0 to 100) of the values lie; None without values."""
        if self.n == 0:
            return None
        rank = percent / 100 * (self.n - 1)
        whole = math.floor(rank)
        low = self._at(whole)
        return low if whole == rank else low + (rank - whole) * (self._at(whole + 1) - low)

    def _at(self, rank: int) -> float:
        """The value of that rank (from 0), as well as its bin tells."""
        if rank <= 0:
            return self.min
        if rank >= self.n - 1:
            return self.max
        before = 0
        for place, count in enumerate(self._counts):
            before += count
            if before > rank:
                return min(max(FINEST * math.sinh((self._low + place) * RELATIVE), self.min), self.max)
        raise AssertionError("the bins hold every value")

    def numbers(self, *wanted: str) -> dict[str, float | None]:
        """The wanted ones of ``last, min, max, p5, p50 …``, ready for JSON; all None without values."""
        if self.n == 0:
            return dict.fromkeys(wanted)
        named = {"last": self.last, "min": self.min, "max": self.max}
        return {key: named[key] if key in named else self.percentile(float(key.removeprefix("p"))) for key in wanted}
