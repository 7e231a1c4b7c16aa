"""A computed zone while it grows: what one needle has killed after any time of its heating."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from nav.ablation.applicators import Applicator
from nav.ablation.needle_zone import NeedleShape, blend_shapes
from nav.ablation.prediction import predict_growth
from nav.ablation.thermal import Tissue

__all__ = ["ZoneGrowth", "compute_growth"]

#: Zones kept of one heating, fewer of a freezing, which takes a run for each. Closer together at its beginning, where
#: the zone grows fastest.
_STEPS, _STEPS_COLD, _CROWDING = 24, 8, 1.5


@dataclass(frozen=True, slots=True, eq=False)
class ZoneGrowth:
    """Zones of one heating.

    Attributes
    ----------
    times_s : (n,) tuple of float
        Ascending from above 0; the last is the end of the heating.
    shapes : (n,) tuple of NeedleShape
        On one grid.
    """

    times_s: tuple[float, ...]
    shapes: tuple[NeedleShape, ...]

    @property
    def whole(self) -> NeedleShape:
        """The zone at the end of the heating."""
        return self.shapes[-1]

    def at(self, elapsed_s: float) -> NeedleShape | None:
        """The zone after ``elapsed_s``; None before the first one that was kept (nothing is claimed then)."""
        after = bisect_right(self.times_s, elapsed_s)
        if after == 0:
            return None
        if after == len(self.times_s):
            return self.whole
        first, second = self.times_s[after - 1], self.times_s[after]
        return blend_shapes(self.shapes[after - 1], self.shapes[after], (elapsed_s - first) / (second - first))


def compute_growth(applicator: Applicator, power_w: float, time_s: float, tissue: Tissue) -> ZoneGrowth:
    """Compute the zones of one heating or freezing (about 0.3 s).

    Raises
    ------
    ChartRangeError, NoHeatModelError
    """
    steps = _STEPS_COLD if applicator.modality == "cryo" else _STEPS
    times = tuple(time_s * ((k + 1) / steps) ** _CROWDING for k in range(steps))
    return ZoneGrowth(times, predict_growth(applicator, power_w, times, tissue))
