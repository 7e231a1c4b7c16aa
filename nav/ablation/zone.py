"""The predicted ablation zone, as one type for every tier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EllipsoidZone", "MarginResult"]


@dataclass(frozen=True, slots=True, eq=False)
class EllipsoidZone:
    """Tier 0: the published chart's ellipsoid on the needle. A chart, not a prediction for a patient.

    Attributes
    ----------
    centre_ras, axis_ras : (3,) float64
        Centre, RAS mm; unit direction of advance.
    semi_long_mm, semi_short_mm : float
        Along and across the needle.
    """

    centre_ras: NDArray[np.float64]
    axis_ras: NDArray[np.float64]
    semi_long_mm: float
    semi_short_mm: float
    tier: int
    applicator: str
    power_w: float
    time_s: float
    basis: str
    citation: str


@dataclass(frozen=True, slots=True, eq=False)
class MarginResult:
    """Tumour against zone.

    Attributes
    ----------
    min_margin_mm : float
        Smallest signed distance from the tumour's surface to the zone's surface, positive inside the zone.
    worst_point_ras : (3,) float64
        Where on the tumour's surface it is.
    coverage : float
        Share of tumour + 5 mm inside the zone, 0 to 1.
    sigma_mm : float
        1 sigma of ``min_margin_mm`` from the tip uncertainty and the sampling of the surface.
    """

    min_margin_mm: float
    worst_point_ras: NDArray[np.float64]
    coverage: float
    sigma_mm: float
