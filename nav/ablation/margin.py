"""Minimum margin and coverage: the tumour against a zone, for every pose.

For a chart's ellipsoid the distance is exact. It follows Eberly ("Distance from a point to an ellipse, an ellipsoid, or
a hyperellipsoid", Geometric Tools, 2013): in the half plane of axis and point it is the distance to an ellipse, whose
foot point solves one equation in one unknown. Newton's iteration from a lower bound of the root converges
monotonically, because the function is convex and decreasing there. No voxels take part, so the bias of voxel borders
(up to 2 mm, `docs/guidance.md`) does not arise here; what the tumour's own voxels leave uncertain is in ``sigma_mm``.
Computed zones bring tables of distances, or points on their surface.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from nav.ablation.tumour import TumourModel
from nav.ablation.zone import EllipsoidZone, MarginResult, NeedleZone, Zone, ZoneUnion
from nav.ablation.zone_samples import surface_grid
from nav.geometry.kernels import KernelSpec

__all__ = [
    "KERNELS",
    "WANTED_MM",
    "compute_margin",
    "inside_level",
    "point_margin_mm",
    "surface_margins_mm",
    "table_margins_mm",
]

Array = NDArray[np.float64]

#: Margin that is aimed at (ACCLAIM trial protocol; Shady 2018), mm.
WANTED_MM = 5.0
#: Between samples of the surface of a union.
_SAMPLES_MM = 1.5
#: Less deep than this in another zone, a surface still counts: two zones at one place shall not take away each other's.
_TOUCH_MM = 0.1


@njit(nogil=True, cache=True)
def _ellipse_margin(z, rho, a, b):  # type: ignore[no-untyped-def]
    """Signed distance, positive inside, of (z, rho ≥ 0) to the ellipse with semi-axes ``a`` (z) and ``b`` (rho)."""
    if math.isnan(z) or math.isnan(rho):
        return math.nan
    z = abs(z)
    if a >= b:
        e0, e1, y0, y1 = a, b, z, rho
    else:
        e0, e1, y0, y1 = b, a, rho, z
    if y1 <= 1e-15 * e1:
        # On the major axis the foot point leaves the vertex where the curvature's centre is passed. Points this close
        # to the axis would start the iteration at its pole.
        numerator = e0 * y0
        denominator = e0 * e0 - e1 * e1
        if numerator < denominator:
            q = numerator / denominator
            x0 = e0 * q
            distance = math.sqrt((x0 - y0) * (x0 - y0) + e1 * e1 * (1.0 - q * q))
        else:
            distance = abs(y0 - e0)
    else:
        z0 = y0 / e0
        z1 = y1 / e1
        r0 = (e0 / e1) * (e0 / e1)
        # Eberly's unknown plus 1, so that it keeps its precision near the major axis.
        excess = (e0 - e1) * (e0 + e1) / (e1 * e1)
        s = max(z1, r0 * z0 - excess)
        for _ in range(100):
            p0 = r0 * z0 / (s + excess)
            p1 = z1 / s
            g = p0 * p0 + p1 * p1 - 1.0
            if g <= 0.0:
                break
            step = 0.5 * g / (p0 * p0 / (s + excess) + p1 * p1 / s)
            s += step
            if step <= 1e-14 * s:
                break
        x0 = r0 * y0 / (s + excess)
        x1 = y1 / s
        distance = math.sqrt((x0 - y0) * (x0 - y0) + (x1 - y1) * (x1 - y1))
    inside = (y0 / e0) * (y0 / e0) + (y1 / e1) * (y1 / e1) <= 1.0
    return distance if inside else -distance


@njit(nogil=True, cache=True)
def _surface_margins(points, centre, axis, a, b, out):  # type: ignore[no-untyped-def]
    """Margin of every point, into ``out``."""
    for i in range(points.shape[0]):
        x = points[i, 0] - centre[0]
        y = points[i, 1] - centre[1]
        w = points[i, 2] - centre[2]
        z = x * axis[0] + y * axis[1] + w * axis[2]
        rho = math.sqrt(max(x * x + y * y + w * w - z * z, 0.0))
        out[i] = _ellipse_margin(z, rho, a, b)


@njit(nogil=True, cache=True)
def _min_margin(points, centre, axis, a, b):  # type: ignore[no-untyped-def]
    """Smallest margin and its index (-1 without points; NaN margin as soon as a point is NaN).

    Points that cannot be the worst are skipped by a bound: with ``f`` the level of the point (1 on the surface), a
    point inside lies at least ``(1 − f) min(a, b)`` deep, one outside at most ``|p| (1 − 1/f)`` away.
    """
    best = math.inf
    index = -1
    shorter = min(a, b)
    for i in range(points.shape[0]):
        x = points[i, 0] - centre[0]
        y = points[i, 1] - centre[1]
        w = points[i, 2] - centre[2]
        z = x * axis[0] + y * axis[1] + w * axis[2]
        r2 = x * x + y * y + w * w
        rho2 = max(r2 - z * z, 0.0)
        f = math.sqrt(z * z / (a * a) + rho2 / (b * b))
        bound = (1.0 - f) * shorter if f <= 1.0 else -math.sqrt(r2) * (1.0 - 1.0 / f)
        if bound > best:
            continue
        margin = _ellipse_margin(z, math.sqrt(rho2), a, b)
        if math.isnan(margin):
            return math.nan, i
        if margin < best:
            best = margin
            index = i
    return best, index


@njit(nogil=True, cache=True)
def _count_inside(points, centre, axis, a, b):  # type: ignore[no-untyped-def]
    """How many points lie inside or on the ellipsoid (NaN never does)."""
    count = 0
    ia2 = 1.0 / (a * a)
    ib2 = 1.0 / (b * b)
    for i in range(points.shape[0]):
        x = points[i, 0] - centre[0]
        y = points[i, 1] - centre[1]
        w = points[i, 2] - centre[2]
        z = x * axis[0] + y * axis[1] + w * axis[2]
        if z * z * ia2 + (x * x + y * y + w * w - z * z) * ib2 <= 1.0:
            count += 1
    return count


@njit(nogil=True, cache=True)
def _table_margins(points, tip, axis, table, first_z, pitch, out):  # type: ignore[no-untyped-def]
    """Signed distances looked up around a needle, into ``out``; beyond the table, its edge's and the way there."""
    rows, columns = table.shape
    for i in range(points.shape[0]):
        x = points[i, 0] - tip[0]
        y = points[i, 1] - tip[1]
        w = points[i, 2] - tip[2]
        z = x * axis[0] + y * axis[1] + w * axis[2]
        if math.isnan(z):
            out[i] = math.nan
            continue
        r = math.sqrt(max(x * x + y * y + w * w - z * z, 0.0))
        row = (z - first_z) / pitch
        column = max(r / pitch - 0.5, 0.0)
        inner_row = min(max(row, 0.0), rows - 1.0)
        inner_column = min(column, columns - 1.0)
        beyond = pitch * math.sqrt((row - inner_row) ** 2 + (column - inner_column) ** 2)
        p = min(int(inner_row), rows - 2)
        q = min(int(inner_column), columns - 2)
        v = inner_row - p
        u = inner_column - q
        out[i] = (
            (1.0 - v) * ((1.0 - u) * table[p, q] + u * table[p, q + 1])
            + v * ((1.0 - u) * table[p + 1, q] + u * table[p + 1, q + 1])
            - beyond
        )


_POINTS = "Array(float64, 2, 'C', readonly=True)"
_VECTOR = "Array(float64, 1, 'C', readonly=True)"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "margin: every surface point",
        _surface_margins,
        (f"{_POINTS}, {_VECTOR}, {_VECTOR}, float64, float64, float64[::1]",),
    ),
    KernelSpec("margin: minimum", _min_margin, (f"{_POINTS}, {_VECTOR}, {_VECTOR}, float64, float64",)),
    KernelSpec(
        "margin: computed zone",
        _table_margins,
        (f"{_POINTS}, {_VECTOR}, {_VECTOR}, {_POINTS}, float64, float64, float64[::1]",),
    ),
    KernelSpec("margin: coverage", _count_inside, (f"{_POINTS}, {_VECTOR}, {_VECTOR}, float64, float64",)),
)


def _readonly(array: ArrayLike) -> Array:
    out = np.ascontiguousarray(array, dtype=np.float64).view()
    out.setflags(write=False)
    return out


def table_margins_mm(
    points_ras: ArrayLike, tip_ras: ArrayLike, axis_ras: ArrayLike, distance_mm: ArrayLike, first_z_mm: float,
    spacing_mm: float,
) -> Array:  # fmt: skip
    """(n,) distances in mm of (n, 3) RAS points, looked up in a table around a needle as `NeedleShape` has it."""
    points = _readonly(points_ras)
    out = np.empty(len(points))
    _table_margins(
        points, _readonly(tip_ras), _readonly(axis_ras), _readonly(distance_mm), first_z_mm, spacing_mm, out
    )  # fmt: skip
    return out


def surface_margins_mm(points_ras: ArrayLike, zone: Zone) -> Array:
    """(n,) signed distance in mm of (n, 3) RAS points to the zone's surface, positive inside; -inf without a zone.

    Beyond the table or box of a computed zone (more than 10 mm outside of it) the distance is an upper bound of the
    magnitude. Outside a zone that is drawn in towards vessels it is a lower bound of it. Inside a union it is the depth
    in that zone where the point lies deepest, and the union's surface may be farther away.
    """
    points = _readonly(points_ras)
    if isinstance(zone, ZoneUnion):
        return np.asarray(np.max([surface_margins_mm(points, z) for z in zone.zones], axis=0))
    out = np.empty(len(points))
    if isinstance(zone, EllipsoidZone):
        _surface_margins(
            points, _readonly(zone.centre_ras), _readonly(zone.axis_ras), zone.semi_long_mm, zone.semi_short_mm, out
        )
    elif isinstance(zone, NeedleZone) and zone.shape.is_empty:
        out[:] = np.where(np.isnan(points).any(axis=1), np.nan, -np.inf)
    elif isinstance(zone, NeedleZone):
        pose, grid = zone.ras_from_tip, zone.shape.grid
        table = _readonly(zone.shape.distance_mm)
        tip, axis = _readonly(pose.translation), _readonly(pose.rotation[:, 2])
        _table_margins(points, tip, axis, table, grid.first_z_mm, grid.spacing_mm, out)
        if zone.cut is not None and len(zone.cut.heights_mm):
            x, y, z = np.ascontiguousarray(points.T)
            for (p, q, r), height in zip(zone.cut.normals_ras, zone.cut.heights_mm - zone.cut.slack_mm, strict=True):
                np.minimum(out, height - (p * x + q * y + r * z), out=out)
    elif len(zone.surface_ras) == 0:
        out[:] = -np.inf
    else:
        known = np.asarray(np.isfinite(points).all(axis=1))
        at = zone.distance.to_index(np.where(known[:, None], points, 0.0))[:, ::-1].T
        edge = np.clip(at.T, 0.0, np.array(zone.distance.array.shape) - 1.0).T
        beyond = float(zone.distance.spacing_mm[0]) * np.linalg.norm(at - edge, axis=0)
        distance = ndimage.map_coordinates(zone.distance.array, edge, np.float64, order=1, mode="nearest")
        out = np.where(known, distance - beyond, np.nan)
    return out


def point_margin_mm(point_ras: ArrayLike, zone: Zone) -> float:
    """Signed distance in mm of one RAS point to the zone's surface, positive inside."""
    return float(surface_margins_mm(np.asarray(point_ras, dtype=np.float64)[None], zone)[0])


def _normal_at(point: Array, zone: Zone) -> Array:
    """Unit direction in which a shift of the zone changes the margin at ``point`` most."""
    if not isinstance(zone, EllipsoidZone):
        steps = np.concatenate([point + 0.5 * np.eye(3), point - 0.5 * np.eye(3)])
        near = surface_margins_mm(steps, zone)
        g = near[3:] - near[:3]
        length = float(np.linalg.norm(g))
        return np.asarray(g / length if 0.0 < length < math.inf else np.array([1.0, 0.0, 0.0]))
    p = point - zone.centre_ras
    z = float(p @ zone.axis_ras)
    across = p - z * zone.axis_ras
    g = z / zone.semi_long_mm**2 * zone.axis_ras + across / zone.semi_short_mm**2
    length = float(np.linalg.norm(g))
    return np.asarray(g / length if length > 0.0 else zone.axis_ras)


def inside_level(points: Array, zone: Zone) -> Array:
    """(n,) at (n, 3) RAS points: at least 0 inside, near the surface about the margin.

    Cheaper than `surface_margins_mm` for ellipsoids, whose distance is not solved for.
    """
    if not isinstance(zone, EllipsoidZone):
        return surface_margins_mm(points, zone)
    x, y, z = (np.ascontiguousarray(points[:, c]) - zone.centre_ras[c] for c in range(3))
    p, q, r = zone.axis_ras
    along = (p * x + q * y + r * z) ** 2
    a, b = zone.semi_long_mm, zone.semi_short_mm
    level = 1.0 - np.sqrt(along / a**2 + np.maximum(x * x + y * y + z * z - along, 0.0) / b**2)
    return np.asarray(min(a, b) * level)


def _count_in_union(points: Array, union: ZoneUnion) -> int:
    outside = points
    for zone in union.zones:
        outside = outside[~(inside_level(outside, zone) >= 0.0)]
    return len(points) - len(outside)


def _deepest_in_union(points: Array, bounds: Array, union: ZoneUnion) -> tuple[int, float]:
    """Index and margin of the worst of points that all lie inside a union.

    Between zones that overlap, the nearest surface of the deepest one lies inside another; the union's own surface,
    often the waist where they meet, is farther. It is sampled: what of each zone's surface lies in no other one, and
    where lines of samples enter another. Points that cannot be the worst by ``bounds`` are left out.
    """
    pieces = []
    for i, zone in enumerate(union.zones):
        grid = surface_grid(zone, _SAMPLES_MM)
        others = [z for j, z in enumerate(union.zones) if j != i]
        if not others or not grid.size:
            pieces.append(grid.reshape(-1, 3))
            continue
        inside = np.max([inside_level(grid.reshape(-1, 3), z) for z in others], axis=0).reshape(grid.shape[:2])
        inside -= _TOUCH_MM
        pieces.append(grid[inside <= 0.0])
        for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :], None)):
            there = np.roll(grid, -1, axis=1) if second is None else grid[second]
            deep = np.roll(inside, -1, axis=1) if second is None else inside[second]
            crossing = (inside[first] > 0.0) != (deep > 0.0)
            a, b = inside[first][crossing], deep[crossing]
            share = (a / (a - b))[:, None]
            pieces.append((1.0 - share) * grid[first][crossing] + share * there[crossing])
    surface = np.concatenate(pieces)
    # A foot on the surface may lie between samples: no farther than half the diagonal from one of them.
    off = 0.5 * math.sqrt(2.0) * _SAMPLES_MM

    worst = int(np.argmin(bounds))
    x, y, z = np.ascontiguousarray(surface.T)
    p, q, r = points[worst]
    nearest = float(np.min((x - p) ** 2 + (y - q) ** 2 + (z - r) ** 2))
    best = max(float(bounds[worst]), math.sqrt(max(nearest - off * off, 0.0)))
    rest = np.flatnonzero(bounds < best)
    if not len(rest):
        return worst, best
    low, high = points[rest].min(axis=0) - best - off, points[rest].max(axis=0) + best + off
    near = surface[
        (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1]) & (z >= low[2]) & (z <= high[2])
    ]  # fmt: skip
    distance = cKDTree(near, balanced_tree=False, compact_nodes=False).query(points[rest])[0]
    margins = np.maximum(bounds[rest], np.sqrt(np.maximum(distance**2 - off * off, 0.0)))
    which = int(np.argmin(margins))
    return int(rest[which]), float(margins[which])


def compute_margin(model: TumourModel, zone: Zone, tip_covariance_mm2: Array | None = None) -> MarginResult:
    """Minimum margin of the tumour's surface to the zone, coverage of tumour + margin, and the margin's sigma.

    Parameters
    ----------
    model : TumourModel
    zone : Zone
        In the same RAS space, of any tier.
    tip_covariance_mm2 : (3, 3) float64, optional
        Of the needle tip in RAS. The zone moves with the tip.

    Returns
    -------
    MarginResult
        ``sigma_mm`` joins the tip covariance along the direction of the worst point (a shift of the zone changes the
        margin there by its component along the zone's normal) with the tumour surface's own uncertainty in that
        direction. To first order: it leaves out that another point may become the worst one, and the needle's angle.
    """
    if isinstance(zone, EllipsoidZone):
        centre, axis = _readonly(zone.centre_ras), _readonly(zone.axis_ras)
        a, b = float(zone.semi_long_mm), float(zone.semi_short_mm)
        margin, index = _min_margin(model.surface_points, centre, axis, a, b)
        inside = _count_inside(model.volume_points, centre, axis, a, b)
    else:
        margins = surface_margins_mm(model.surface_points, zone)
        index = int(np.argmin(margins))  # NaN counts as the smallest
        if isinstance(zone, ZoneUnion) and margins[index] > 0.0:
            index, margin = _deepest_in_union(model.surface_points, margins, zone)
        else:
            margin = float(margins[index])
        if isinstance(zone, ZoneUnion):
            inside = _count_in_union(model.volume_points, zone)
        else:
            inside = int((surface_margins_mm(model.volume_points, zone) >= 0.0).sum())
    worst = np.array(model.surface_points[index])
    worst.setflags(write=False)
    normal = _normal_at(worst, zone)
    variance = model.surface_sigma_mm(normal) ** 2
    if tip_covariance_mm2 is not None:
        variance += float(normal @ np.asarray(tip_covariance_mm2, dtype=np.float64) @ normal)
    return MarginResult(
        min_margin_mm=float(margin),
        worst_point_ras=worst,
        coverage=inside / len(model.volume_points),
        sigma_mm=math.sqrt(variance),
    )
