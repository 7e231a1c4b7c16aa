"""The predicted ablation zone, as one type for every tier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nav.ablation.needle_zone import NeedleShape
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

__all__ = ["BoxZone", "EllipsoidZone", "MarginChance", "MarginResult", "NeedleZone", "VesselCut", "Zone", "ZoneUnion"]


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

    @property
    def long_mm(self) -> float:
        """Diameter along the needle."""
        return 2.0 * self.semi_long_mm

    @property
    def short_mm(self) -> float:
        """Diameter across the needle."""
        return 2.0 * self.semi_short_mm


@dataclass(frozen=True, slots=True, eq=False)
class VesselCut:
    """Planes across the ways from the antenna to vessels, beyond which nothing of a zone is left.

    Attributes
    ----------
    walls_ras : (n, 3) float64
        The points of vessel walls that matter, RAS mm.
    normals_ras : (n, 3) float64
        Of the planes, unit, towards the vessels.
    heights_mm : (n,) float64
        Of the planes along their normals, from the origin of RAS.
    depth_mm : float
        The walls lie this much nearer than the points.
    slack_mm : float
        What the walls left out may cut beyond the planes; taken off.
    """

    walls_ras: NDArray[np.float64]
    normals_ras: NDArray[np.float64]
    heights_mm: NDArray[np.float64]
    depth_mm: float
    slack_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class NeedleZone:
    """Tier 1: heat computed around the needle in homogeneous tissue, placed on it.

    Attributes
    ----------
    ras_from_tip : Rigid
        Needle tip in RAS mm, +z the direction of advance.
    shape : NeedleShape
        Without vessels.
    cut : VesselCut, optional
        Of `nav.ablation.vessel_cut`, an empirical rule; None when vessels were not looked at.
    """

    ras_from_tip: Rigid
    shape: NeedleShape
    applicator: str
    power_w: float
    time_s: float
    tissue: str
    basis: str
    tier: int = 1
    cut: VesselCut | None = None

    @property
    def centre_ras(self) -> NDArray[np.float64]:
        """Middle of the zone's length."""
        centre = self.ras_from_tip.translation + self.shape.centre_z_mm * self.ras_from_tip.rotation[:, 2]
        return np.asarray(centre, dtype=np.float64)

    @property
    def long_mm(self) -> float:
        """Length along the needle."""
        return self.shape.long_mm

    @property
    def short_mm(self) -> float:
        """Largest diameter across the needle."""
        return self.shape.short_mm


@dataclass(frozen=True, slots=True, eq=False)
class BoxZone:
    """Tier 2: heat computed in a box with everything in it; it stays where it was computed.

    Attributes
    ----------
    level : Volume
        float32; logarithm of the damage integral, or K below the lethal temperature: above 0 inside.
    distance : Volume
        float32; signed distance to the zone's surface, mm, above 0 inside; -inf where there is no zone.
    surface_ras : (n, 3) float64
        Points on the zone's surface, at most half a cell apart.
    axis_ras : (3,) float64
        Of the first needle.
    long_mm, short_mm : float
        Extent along that axis; largest extent across it.
    volume_ml : float
    """

    level: Volume
    distance: Volume
    surface_ras: NDArray[np.float64]
    axis_ras: NDArray[np.float64]
    long_mm: float
    short_mm: float
    volume_ml: float
    tissue: str
    basis: str
    tier: int = 2


@dataclass(frozen=True, slots=True, eq=False)
class ZoneUnion:
    """Zones made one after the other, each where it was made: applicators in turn, or one that is pulled back.

    What is heated together grows larger than this; only three dimensions (tier 2) know by how much.

    Attributes
    ----------
    zones : tuple of EllipsoidZone or NeedleZone
        At least one.
    """

    zones: tuple[EllipsoidZone | NeedleZone, ...]

    def __post_init__(self) -> None:
        if not self.zones:
            raise ValueError("a union needs at least one zone")

    @property
    def tier(self) -> int:
        """The lowest of its zones: with one chart in it, it is no prediction."""
        return min(z.tier for z in self.zones)

    @property
    def basis(self) -> str:
        """Of every zone."""
        return "; ".join(dict.fromkeys(f"tier {z.tier}: {z.basis}" for z in self.zones))


#: What a margin can be asked of.
Zone = EllipsoidZone | NeedleZone | BoxZone | ZoneUnion


@dataclass(frozen=True, slots=True, eq=False)
class MarginChance:
    """How likely the margin is 5 mm or more, as far as the errors are known.

    Attributes
    ----------
    p_ge5 : float
        That it is so everywhere on the tumour's surface.
    p_ge5_worst : float
        At the point that is the worst one now.
    sigma_mm : float
        1 sigma of the minimum margin.
    at_least_mm : float
        The minimum margin is larger than this with 95 %.
    of_chart : bool
        A chart's zone took part, of which only the pose and the tumour's surface are drawn: the chance that the margin
        would be kept *if the chart were right*. Not a prediction.
    basis : str
        What was drawn.
    """

    p_ge5: float
    p_ge5_worst: float
    sigma_mm: float
    at_least_mm: float
    of_chart: bool
    basis: str


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
        1 sigma of ``min_margin_mm``: to first order, from the tip uncertainty and the sampling of the surface; with
        ``chance``, that one's.
    chance : MarginChance, optional
        Of `nav.ablation.margin_chance`.
    """

    min_margin_mm: float
    worst_point_ras: NDArray[np.float64]
    coverage: float
    sigma_mm: float
    chance: MarginChance | None = None
