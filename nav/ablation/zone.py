"""The predicted ablation zone, as one type for every tier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nav.ablation.needle_zone import NeedleShape
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

__all__ = ["BoxZone", "EllipsoidZone", "MarginResult", "NeedleZone", "Zone"]


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
class NeedleZone:
    """Tier 1: heat computed around the needle in homogeneous tissue, placed on it.

    Attributes
    ----------
    ras_from_tip : Rigid
        Needle tip in RAS mm, +z the direction of advance.
    shape : NeedleShape
    """

    ras_from_tip: Rigid
    shape: NeedleShape
    applicator: str
    power_w: float
    time_s: float
    tissue: str
    basis: str
    tier: int = 1

    @property
    def centre_ras(self) -> NDArray[np.float64]:
        """Middle of the zone's length."""
        centre = self.ras_from_tip.translation + self.shape.centre_z_mm * self.ras_from_tip.rotation[:, 2]
        return np.asarray(centre, dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class BoxZone:
    """Tier 2: heat computed in a box with everything in it; it stays where it was computed.

    Attributes
    ----------
    level : Volume
        float32; logarithm of the damage integral, or K below the lethal temperature: above 0 inside.
    surface_ras : (n, 3) float64
        Points on the zone's surface, at most half a cell apart.
    axis_ras : (3,) float64
        Of the first needle.
    long_mm, short_mm : float
        Extent along that axis; largest extent across it.
    volume_ml : float
    """

    level: Volume
    surface_ras: NDArray[np.float64]
    axis_ras: NDArray[np.float64]
    long_mm: float
    short_mm: float
    volume_ml: float
    tissue: str
    basis: str
    tier: int = 2


#: What a margin can be asked of.
Zone = EllipsoidZone | NeedleZone | BoxZone


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
