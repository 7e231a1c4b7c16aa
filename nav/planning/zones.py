"""What one ablation destroys, in the frame of the needle's tip: the interface, and the chart's ellipsoid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.ablation.applicators import Applicator, ChartRangeError, ZoneSize

__all__ = ["ChartZone", "TipZone", "chart_zones", "in_tip_frame", "inside_any"]

Array = NDArray[np.float64]


class TipZone(Protocol):
    """A zone round the needle's axis."""

    @property
    def offset_mm(self) -> float:
        """Its middle lies this far behind the tip."""

    @property
    def radius_mm(self) -> float:
        """Nothing of it lies further from its middle."""

    def contains(self, along_mm: Array, across_mm: Array) -> NDArray[np.bool_]:
        """Which points are in it: ``along_mm`` ahead of the tip in the direction of advance, ``across_mm`` (≥ 0) from
        the axis; any shape."""

    def describe(self) -> dict[str, Any]:
        """Setting, size, tier, basis and citation, as in plan.json."""


@dataclass(frozen=True, slots=True)
class ChartZone:
    """Tier 0: the manufacturer's reference for one setting. Not a prediction for a patient."""

    applicator: Applicator
    power_w: float
    time_s: float
    size: ZoneSize

    @property
    def offset_mm(self) -> float:
        """The ellipsoid's centre lies this far behind the tip."""
        return self.size.offset_mm

    @property
    def radius_mm(self) -> float:
        """Its longer semi-axis."""
        return 0.5 * max(self.size.long_mm, self.size.short_mm)

    def contains(self, along_mm: Array, across_mm: Array) -> NDArray[np.bool_]:
        """Which points lie in the ellipsoid."""
        a, b = 0.5 * self.size.long_mm, 0.5 * self.size.short_mm
        return np.asarray(((along_mm + self.size.offset_mm) / a) ** 2 + (across_mm / b) ** 2 <= 1.0)

    def describe(self) -> dict[str, Any]:
        """As in plan.json."""
        return {
            "applicator": self.applicator.name, "power_w": self.power_w, "control": self.applicator.control,
            "offset_basis": self.applicator.offset_basis, "time_s": self.time_s,
            "long_mm": self.size.long_mm, "short_mm": self.size.short_mm, "offset_mm": self.size.offset_mm,
            "tier": 0, "basis": self.applicator.stated_basis, "citation": self.applicator.citation,
        }  # fmt: skip


def chart_zones(applicator: Applicator, power_w: float | None = None, time_s: float | None = None) -> list[ChartZone]:
    """Zones of the settings to choose from, the smallest first: the tabulated ones, or those at the power or time.

    Raises
    ------
    ChartRangeError
        A power or time outside the chart.
    """
    settings: list[tuple[float, float]]
    if power_w is not None and time_s is not None:
        settings = [(power_w, time_s)]
    elif power_w is not None:
        first, last = applicator.time_range_s(power_w)
        times = sorted({row.time_s for row in applicator.chart if first <= row.time_s <= last})
        settings = [(power_w, t) for t in times]
    elif time_s is not None:
        settings = []
        for p in applicator.powers_w:
            first, last = applicator.time_range_s(p)
            if first <= time_s <= last:
                settings.append((p, time_s))
        if not settings:
            ranges = "; ".join(
                "{}: {:g} to {:g} s".format(applicator.setting(p), *applicator.time_range_s(p))
                for p in applicator.powers_w
            )
            raise ChartRangeError(
                f"{applicator.name}: time {time_s:g} s, the chart covers {ranges}; sizes are not extrapolated"
            )
    else:
        settings = [(row.power_w, row.time_s) for row in applicator.chart]
    zones = [ChartZone(applicator, p, t, applicator.size(p, t)) for p, t in settings]
    return sorted(zones, key=lambda z: z.size.long_mm * z.size.short_mm**2)


def in_tip_frame(points_ras: ArrayLike, tip_ras: ArrayLike, direction_ras: ArrayLike) -> tuple[Array, Array]:
    """(along, across) in mm of (n, 3) points for one needle; its direction is a unit vector."""
    relative = np.asarray(points_ras, np.float64) - np.asarray(tip_ras, np.float64)
    along = relative @ np.asarray(direction_ras, np.float64)
    across = np.sqrt(np.maximum(np.einsum("ij,ij->i", relative, relative) - along**2, 0.0))
    return along, across


def inside_any(points_ras: Array, zones: list[TipZone], tips_ras: Array, directions_ras: Array) -> NDArray[np.bool_]:
    """(n,) points in the union of zones, one after the other: zones that heat together make another shape."""
    inside = np.zeros(len(points_ras), bool)
    for zone, tip, direction in zip(zones, tips_ras, directions_ras, strict=True):
        rest = np.flatnonzero(~inside)
        inside[rest] = zone.contains(*in_tip_frame(points_ras[rest], tip, direction))
    return inside
