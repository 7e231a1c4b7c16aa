"""Tier 1: the zone that heat leaves around one needle in homogeneous tissue, and its signed distance.

A computed zone is a body of revolution about the needle. It is kept as a table of signed distances in the needle's
half plane, so that placing it at a pose costs nothing and its margin at a point is one look-up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage import measure

from nav.ablation.sources import NeedleGrid

__all__ = ["NeedleShape", "shape_of_damage", "shape_of_distance", "shape_of_level"]

Array = NDArray[np.float64]

#: Levels are cut here: the logarithm of the damage of what never got warm has no end.
_LOWEST = -12.0


@dataclass(frozen=True, slots=True, eq=False)
class NeedleShape:
    """A zone of revolution in the needle's frame (origin at the tip, +z the direction of advance).

    Attributes
    ----------
    grid : NeedleGrid
    distance_mm : (rows, columns) float64, read-only
        Signed distance to the zone's surface, positive inside.
    outline_mm : (n, 2) float64, read-only
        Its outline in the half plane, (z, r), from tip side to hub side.
    long_mm, short_mm : float
        Length along the needle, largest diameter across; 0 without a zone.
    centre_z_mm : float
        Middle of the length.
    volume_ml : float
    """

    grid: NeedleGrid
    distance_mm: Array
    outline_mm: Array
    long_mm: float
    short_mm: float
    centre_z_mm: float
    volume_ml: float


def shape_of_damage(grid: NeedleGrid, damage: Array) -> NeedleShape:
    """The zone where the damage integral reached 1, found between cells.

    Damage grows exponentially with temperature: its logarithm is what is interpolated. As `shape_of_level`.

    Parameters
    ----------
    grid : NeedleGrid
    damage : (rows, columns) float64
        Arrhenius integral.
    """
    return shape_of_level(grid, np.log(np.maximum(damage, 1e-30)))


def shape_of_level(grid: NeedleGrid, level: Array) -> NeedleShape:
    """The zone where ``level`` (rows, columns) is above 0, found between cells.

    Raises
    ------
    ValueError
        The zone touches the edge of the grid.
    """
    level = np.maximum(level, _LOWEST)
    if (level[[0, -1]] >= 0.0).any() or (level[:, -1] >= 0.0).any():
        raise ValueError(f"the zone reaches the edge of a grid of {grid.rows} x {grid.columns} cells")
    if (level < 0.0).all():
        nothing = np.full((grid.rows, grid.columns), -np.inf)
        return NeedleShape(grid, _frozen(nothing), _frozen(np.empty((0, 2))), 0.0, 0.0, 0.0, 0.0)
    return _shape(grid, level)


def shape_of_distance(grid: NeedleGrid, distance_mm: Array) -> NeedleShape:
    """The zone inside the zero line of a table of (about) signed distances, mm; as `shape_of_damage`."""
    return shape_of_level(grid, distance_mm)


def _shape(grid: NeedleGrid, level: Array) -> NeedleShape:
    # Mirrored at the axis, so that outlines close there.
    both = np.concatenate([level[:, ::-1], level], axis=1)
    curves = [
        np.stack(
            [grid.first_z_mm + c[:, 0] * grid.spacing_mm, (c[:, 1] - (grid.columns - 0.5)) * grid.spacing_mm], axis=1
        )
        for c in measure.find_contours(both, 0.0)  # type: ignore[no-untyped-call]
    ]
    points = np.stack(np.meshgrid(grid.z_mm, grid.r_mm, indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.full(len(points), np.inf)
    for curve in curves:
        distance = np.minimum(distance, _distance_to(curve, points))
    table = distance.reshape(level.shape)
    signed = np.where(level >= 0.0, table, -table)
    largest = max(curves, key=lambda c: float(np.ptp(c[:, 0])))
    every = np.concatenate(curves)
    low, high = float(every[:, 0].min()), float(every[:, 0].max())
    half = largest[largest[:, 1] >= -1e-9]
    half = half[np.argsort(np.arctan2(half[:, 1], half[:, 0] - 0.5 * (low + high)))]
    share = np.clip(0.5 + signed / grid.spacing_mm, 0.0, 1.0)
    volume = float((share * grid.volumes_mm3).sum())
    return NeedleShape(
        grid, _frozen(signed), _frozen(half), high - low, 2.0 * float(every[:, 1].max()), 0.5 * (low + high),
        1e-3 * volume,
    )  # fmt: skip


def _distance_to(curve: Array, points: Array) -> Array:
    """Distance of (n, 2) points to a polyline: to the segments at the nearest of its vertices."""
    last = len(curve) - 1
    nearest = cKDTree(curve).query(points, k=min(4, len(curve)))[1]
    best = np.full(len(points), np.inf)
    for shift in (-1, 0):
        first = np.clip(nearest + shift, 0, last - 1)
        start, along = curve[first], curve[first + 1] - curve[first]
        off = points[:, None] - start
        share = np.clip((off * along).sum(axis=-1) / np.maximum((along**2).sum(axis=-1), 1e-12), 0.0, 1.0)
        best = np.minimum(best, np.sqrt(((off - share[..., None] * along) ** 2).sum(axis=-1)).min(axis=-1))
    return best


def _frozen(array: Array) -> Array:
    out: Array = np.ascontiguousarray(array, dtype=np.float64)
    out.setflags(write=False)
    return out
