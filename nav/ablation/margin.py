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
from nav.ablation.zone import EllipsoidZone, MarginResult, NeedleZone, Zone
from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS", "compute_margin", "point_margin_mm", "surface_margins_mm", "table_margins_mm"]

Array = NDArray[np.float64]


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

    Beyond the table of a computed zone (more than 10 mm outside of it) the distance is an upper bound of the magnitude.
    Outside a zone that is drawn in towards vessels it is a lower bound of it.
    """
    points = _readonly(points_ras)
    out = np.empty(len(points))
    if isinstance(zone, EllipsoidZone):
        _surface_margins(
            points, _readonly(zone.centre_ras), _readonly(zone.axis_ras), zone.semi_long_mm, zone.semi_short_mm, out
        )
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
        somewhere = np.where(known[:, None], points, 0.0)
        distance = cKDTree(zone.surface_ras).query(somewhere)[0]
        at = zone.level.to_index(somewhere)[:, ::-1].T
        inside = ndimage.map_coordinates(zone.level.array, at, order=1, mode="constant", cval=-np.inf) >= 0.0
        out = np.where(known, np.where(inside, distance, -distance), np.nan)
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
        margin = margins[index]
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
