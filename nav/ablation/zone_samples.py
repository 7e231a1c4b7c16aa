"""Points on the surface of zones around a needle."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nav.ablation.zone import EllipsoidZone, NeedleZone
from nav.geometry.directions import axes_along

__all__ = ["drawn_in", "outline_grid", "surface_grid"]

Array = NDArray[np.float64]


def outline_grid(outline_mm: Array, spacing_mm: float) -> Array:
    """(rows, turns, 3) points on the body of revolution of an outline (z, r), in its frame; at most so far apart.

    From one pole to the other and around; no rows without an outline.
    """
    if not len(outline_mm):
        return np.empty((0, 1, 3))
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(outline_mm, axis=0), axis=1))])
    rows = np.linspace(0.0, along[-1], math.ceil(along[-1] / spacing_mm) + 1)
    z, r = (np.interp(rows, along, outline_mm[:, c]) for c in range(2))
    r[[0, -1]] = 0.0  # an outline ends where it meets the axis, up to the cells that it was found in
    turns = math.ceil(2.0 * np.pi * float(r.max()) / spacing_mm)
    angles = np.arange(turns) * (2.0 * np.pi / turns)
    return np.stack(np.broadcast_arrays(r[:, None] * np.cos(angles), r[:, None] * np.sin(angles), z[:, None]), axis=-1)


def surface_grid(zone: EllipsoidZone | NeedleZone, spacing_mm: float) -> Array:
    """(rows, turns, 3) RAS points on a zone's surface, from one pole to the other and around; at most so far apart.

    Where vessels cut the zone, points are moved towards its middle, onto the cut.
    """
    if isinstance(zone, EllipsoidZone):
        a, b, centre, axes = zone.semi_long_mm, zone.semi_short_mm, zone.centre_ras, axes_along(zone.axis_ras)
        t = np.linspace(0.0, np.pi, 181)
        outline = np.stack([a * np.cos(t), b * np.sin(t)], axis=1)
    else:
        outline = zone.shape.outline_mm - np.array([zone.shape.centre_z_mm, 0.0])
        centre, axes = zone.centre_ras, zone.ras_from_tip.rotation
    grid = np.asarray(outline_grid(outline, spacing_mm) @ axes.T + centre)
    return drawn_in(grid, zone) if isinstance(zone, NeedleZone) else grid


def drawn_in(points_ras: Array, zone: NeedleZone) -> Array:
    """(..., 3) points with those beyond the planes that vessels cut moved towards the zone's middle, onto the cut."""
    if zone.cut is None or not points_ras.size:
        return points_ras
    local = points_ras - zone.centre_ras
    rooms = zone.cut.heights_mm - zone.cut.slack_mm - zone.cut.normals_ras @ zone.centre_ras
    for normal, room in zip(zone.cut.normals_ras, rooms, strict=True):
        reach = local @ normal
        beyond = reach > room
        local[beyond] *= (max(room, 0.0) / reach[beyond])[:, None]
    return np.asarray(local + zone.centre_ras)
