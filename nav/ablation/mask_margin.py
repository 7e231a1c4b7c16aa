"""The margin of a measured ablation: the tumour's surface against the surface of the ablation's mask, in one space.

The tumour's side is the same as in the live number (`nav.ablation.tumour` stands on the same `MaskSurface`), and so is
the result's type; `measure_margin` takes an ellipsoid of a chart as well as a mask.

Margin coverage: Laimer et al. 2021, Eur Radiol 31:6489 (share of the shell of m mm around the tumour that is ablated).
Subcapsular surface and classes < 0, 0 to 5, ≥ 5 mm: Sandu et al. 2021 (QAM), whose voxel borders are in
`nav.ablation.voxel_border`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import ndtr

from nav.ablation.margin import WANTED_MM, surface_margins_mm
from nav.ablation.mask_surface import MaskSurface
from nav.ablation.zone import MarginResult, Zone

__all__ = ["CAPSULE_MM", "CoverageShell", "MarginMap", "MarginShares", "measure_margin", "share_below"]

Array = NDArray[np.float64]
Faces = NDArray[np.int32]
Mapping = Callable[[Array], Array]

#: Tumour surface closer than this to the organ's border is subcapsular (Sandu 2021), mm.
CAPSULE_MM = 5.0
#: Thickness of the shells of the coverage histogram, mm.
SHELLS_MM = tuple(float(m) for m in range(1, 11))
_MAX_SAMPLES = 120_000
#: 95 % of a normal distribution lie within so many sigma.
_SIGMAS_95 = 1.96
#: Smoothing mixes the border's error along the axes: in no direction is the variance below this share of that along the
#: longest edge. Without it the stated interval misses errors between thick slices (``docs/margin.md``).
_MIXED = 0.25


@dataclass(frozen=True, slots=True)
class MarginShares:
    """Area-weighted shares of a surface by its margin, and the smallest margin on it."""

    min_margin_mm: float
    lt0: float
    from0_to5: float
    ge5: float


@dataclass(frozen=True, slots=True)
class CoverageShell:
    """How much of the shell of ``margin_mm`` around the tumour (inside the organ) is ablated, and how much is not."""

    margin_mm: float
    coverage: float
    shell_ml: float
    uncovered_ml: float


@dataclass(frozen=True, slots=True, eq=False)
class MarginMap:
    """Margins on the tumour's surface, RAS mm of the ablation's space.

    Attributes
    ----------
    result : MarginResult
        The number that the live view shows, for this pair: minimum, worst point, coverage of tumour + 5 mm, sigma.
    vertices : (v, 3) float64; faces : (f, 3) int32
        The tumour's surface where it lies in the ablation's space.
    margins_mm : (v,) float64
        Signed distance to the ablation's surface, positive inside the ablation.
    whole : MarginShares
    free : MarginShares or None
        Without the subcapsular surface; None without an organ, or when all of it is subcapsular.
    excluded_fraction : float
        Share of the surface that is subcapsular; 0 without an organ.
    capsule_mm : (v,) float64 or None
        Distance to the organ's border.
    coverage : tuple of CoverageShell
    tumour_covered : float
        Share of the tumour inside the ablation.
    voxel_uncertainty_mm : float
        Half width of the interval in which 95 % of the errors of ``min_margin_mm`` lie that come from voxels.
    """

    result: MarginResult
    vertices: Array
    faces: Faces
    margins_mm: Array
    whole: MarginShares
    free: MarginShares | None
    excluded_fraction: float
    capsule_mm: Array | None
    coverage: tuple[CoverageShell, ...]
    tumour_covered: float
    voxel_uncertainty_mm: float
    warnings: tuple[str, ...] = field(default=())

    def probability_of(self, margin_mm: float, sigma_mm: float) -> float:
        """P(true minimum margin ≥ ``margin_mm``) with a stated 1 sigma of registration and segmentation beside voxels.

        Normal errors: the sigmas of voxels and of the rest add in squares.
        """
        sigma = math.hypot(sigma_mm, self.result.sigma_mm)
        return float(ndtr((self.result.min_margin_mm - margin_mm) / sigma))


def share_below(vertices: Array, faces: Faces, values: Array, limit: float) -> float:
    """Area, mm², where ``values`` (v,), linear between vertices, are below ``limit``."""
    corners = vertices[faces]
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    low, mid, high = np.sort(values[faces] - limit, axis=1).T
    with np.errstate(divide="ignore", invalid="ignore"):
        one = low * low / ((mid - low) * (high - low))  # one corner below: a small triangle
        two = 1.0 - high * high / ((high - low) * (high - mid))
    below = np.where(high <= 0.0, 1.0, np.where(low >= 0.0, 0.0, np.where(mid >= 0.0, one, two)))
    below = np.where((high <= 0.0) & (low == high) & (low == 0.0), 0.0, below)
    return float((below * area).sum())


def _shares(vertices: Array, faces: Faces, margins: Array) -> MarginShares:
    total = share_below(vertices, faces, np.zeros(len(vertices)), 1.0)
    lt0 = share_below(vertices, faces, margins, 0.0) / total
    lt5 = share_below(vertices, faces, margins, WANTED_MM) / total
    return MarginShares(float(margins[np.unique(faces)].min()), lt0, lt5 - lt0, 1.0 - lt5)


def measure_margin(
    tumour: MaskSurface,
    ablation: MaskSurface | Zone,
    *,
    organ: MaskSurface | None = None,
    moved: Mapping | None = None,
    back: Mapping | None = None,
    wanted_mm: float = WANTED_MM,
    capsule_mm: float = CAPSULE_MM,
    histogram: bool = True,
) -> MarginMap:
    """Margin of the tumour's surface to the ablation.

    Parameters
    ----------
    tumour : MaskSurface
        In its own space.
    ablation : MaskSurface or Zone
    organ : MaskSurface, optional
        In the tumour's space (`nav.ablation.mask_surface.border_near`).
    moved, back : callable, optional
        Take points, (n, 3) RAS mm, from the tumour's space to the ablation's, and back; both or none. They move
        anatomy, never the ablation.
    wanted_mm : float
        Margin whose coverage is in ``result``.
    histogram : bool
        False leaves out what needs samples of the volume: ``coverage`` is empty then, and both shares NaN.

    Raises
    ------
    ValueError
        A mapping that does not reach all of the tumour.
    """
    there: Mapping = (lambda points: points) if moved is None else moved
    home: Mapping = (lambda points: points) if back is None else back
    vertices = np.ascontiguousarray(there(tumour.vertices))
    lost = int(np.count_nonzero(~np.isfinite(vertices).all(axis=1)))
    if lost:
        raise ValueError(
            f"the transform says nothing about {lost} of {len(vertices)} points of the tumour's surface: its field "
            "does not reach the whole tumour; register with a field that covers it"
        )
    faces = tumour.faces
    margins = _margins(ablation, vertices)
    worst = int(np.argmin(margins))
    whole = _shares(vertices, faces, margins)
    capsule, free, excluded = None, None, 0.0
    if organ is not None:
        capsule = np.abs(organ.signed_distance_mm(tumour.vertices))
        kept = (capsule >= capsule_mm)[faces].all(axis=1)
        excluded = 1.0 - _area(vertices, faces[kept]) / _area(vertices, faces)
        if kept.any():
            free = _shares(vertices, faces[kept], margins)
    shells: tuple[CoverageShell, ...] = ()
    covered, covered_wanted = math.nan, math.nan
    if histogram:
        covered, covered_wanted, shells = _histogram(tumour, vertices, ablation, organ, home, wanted_mm)
    normal = _direction(ablation, vertices[worst])
    axes = _moved_axes(tumour, worst, there)
    variance = _variance(axes, normal)
    if isinstance(ablation, MaskSurface):
        variance += _variance(ablation.voxel_axes_mm, normal)
    sigma = math.sqrt(variance)
    for array in (vertices, margins):
        array.setflags(write=False)
    point = np.array(vertices[worst])
    point.setflags(write=False)
    return MarginMap(
        result=MarginResult(float(margins[worst]), point, covered_wanted, sigma),
        vertices=vertices, faces=faces, margins_mm=margins, whole=whole, free=free, excluded_fraction=excluded,
        capsule_mm=capsule, coverage=shells, tumour_covered=covered, voxel_uncertainty_mm=_SIGMAS_95 * sigma,
        warnings=_warnings(tumour, ablation, organ, margins, covered, back),
    )  # fmt: skip


def _margins(ablation: MaskSurface | Zone, points: Array) -> Array:
    if isinstance(ablation, MaskSurface):
        return -ablation.signed_distance_mm(points)
    return surface_margins_mm(points, ablation)


def _inside(ablation: MaskSurface | Zone, points: Array) -> NDArray[np.bool_]:
    if isinstance(ablation, MaskSurface):
        return ablation.contains(points)
    return surface_margins_mm(points, ablation) >= 0.0


def _area(vertices: Array, faces: Faces) -> float:
    return share_below(vertices, faces, np.zeros(len(vertices)), 1.0) if len(faces) else 0.0


def _direction(ablation: MaskSurface | Zone, point: Array) -> Array:
    """Unit direction in which a shift of the point changes its margin fastest: differences over half a millimetre."""
    steps = 0.5 * np.vstack([np.eye(3), -np.eye(3)])
    at = _margins(ablation, point + steps)
    gradient = at[:3] - at[3:]
    length = float(np.linalg.norm(gradient))
    return np.asarray(gradient / length if length > 0.0 else np.array([0.0, 0.0, 1.0]))


def _moved_axes(tumour: MaskSurface, vertex: int, there: Mapping) -> Array:
    """The tumour's voxel edges at a vertex, as they lie in the ablation's space (columns)."""
    half = 0.5 * tumour.voxel_axes_mm.T
    ends = there(tumour.vertices[vertex] + np.vstack([half, -half]))
    axes = (ends[:3] - ends[3:]).T
    return np.asarray(axes if np.isfinite(axes).all() else tumour.voxel_axes_mm)


def _variance(axes: Array, normal: Array) -> float:
    """Of a border that lies anywhere within a voxel, along ``normal``: Σ (n·v_k)²/12; see `_MIXED`."""
    along = float(np.sum((normal @ axes) ** 2))
    longest = float(np.sum(axes**2, axis=0).max())
    return max(along, _MIXED * longest) / 12.0


def _histogram(
    tumour: MaskSurface,
    vertices: Array,
    ablation: MaskSurface | Zone,
    organ: MaskSurface | None,
    home: Mapping,
    wanted_mm: float,
) -> tuple[float, float, tuple[CoverageShell, ...]]:
    """Shares of the tumour, of tumour + wanted margin and of the shells that are ablated, from samples on a grid."""
    reach = max(*SHELLS_MM, wanted_mm)
    low, high = vertices.min(axis=0) - reach, vertices.max(axis=0) + reach
    tree = cKDTree(vertices)
    # Ball of the box's volume: what the samples of all the box would be, times the share that lies near the tumour.
    spacing = max(0.5, float((np.prod(high - low) * math.pi / 6.0 / _MAX_SAMPLES) ** (1.0 / 3.0)))
    axes = [np.arange(a + 0.5 * spacing, b, spacing) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    near = tree.query(points, distance_upper_bound=reach + 1.0, workers=-1)[0]
    at_home = home(points)
    known = np.isfinite(at_home).all(axis=1)
    inside = np.zeros(len(points), bool)
    inside[known] = tumour.contains(at_home[known])
    kept = inside | (near <= reach + 1.0)
    if organ is not None:
        clip = np.zeros(len(points), bool)
        clip[known] = organ.contains(at_home[known])
        kept &= clip | inside
    points, inside = points[kept], inside[kept]
    moved_surface = _with_vertices(tumour, vertices)
    away = np.zeros(len(points))
    away[~inside] = moved_surface.unsigned_distance_mm(points[~inside])
    ablated = _inside(ablation, points)
    ml = spacing**3 / 1000.0
    shells = []
    for m in SHELLS_MM:
        shell = ~inside & (away <= m)
        count, got = int(shell.sum()), int((shell & ablated).sum())
        shells.append(CoverageShell(m, got / count if count else math.nan, count * ml, (count - got) * ml))
    wanted = inside | (away <= wanted_mm)
    return (
        float(ablated[inside].mean()) if inside.any() else math.nan,
        float(ablated[wanted].mean()) if wanted.any() else math.nan,
        tuple(shells),
    )


def _with_vertices(surface: MaskSurface, vertices: Array) -> MaskSurface:
    return replace(surface, vertices=vertices)


def _warnings(
    tumour: MaskSurface,
    ablation: MaskSurface | Zone,
    organ: MaskSurface | None,
    margins: Array,
    covered: float,
    home: Mapping | None,
) -> tuple[str, ...]:
    said = []
    if tumour.cut_off:
        said.append("the tumour touches the border of its mask: it may be cut off, and the margin there too large")
    if tumour.parts > 1:
        said.append(f"the tumour mask has {tumour.parts} separate parts; the margin holds for all of them together")
    if isinstance(ablation, MaskSurface):
        if ablation.cut_off:
            said.append(
                "the ablation touches the border of its mask: it may be cut off, and the margin there too small"
            )
        if ablation.parts > 1:
            said.append(
                f"the ablation mask has {ablation.parts} separate parts; all count, and a gap between them counts as "
                "not ablated"
            )
    if (margins < 0.0).all() and not covered > 0.0:
        said.append(
            "tumour and ablation do not overlap at all: wrong files, a missing or reversed transform, or a missed one"
        )
    if organ is not None and isinstance(ablation, MaskSurface):
        at = ablation.vertices if home is None else home(ablation.vertices)
        at = at[np.isfinite(at).all(axis=1)]
        share = float((~organ.contains(at)).mean()) if len(at) else 1.0
        if share > 0.02:
            said.append(f"{share:.0%} of the ablation's surface lies outside the organ mask")
    return tuple(said)
