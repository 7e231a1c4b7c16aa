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

__all__ = ["NeedleShape", "blend_shapes", "outline_at", "shape_of_damage", "shape_of_distance", "shape_of_level"]

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

    @property
    def is_empty(self) -> bool:
        """Nothing was killed."""
        return self.volume_ml == 0.0


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
        return _nothing(grid)
    return _shape(grid, level)


def shape_of_distance(grid: NeedleGrid, distance_mm: Array) -> NeedleShape:
    """The zone inside the zero line of a table of (about) signed distances, mm; as `shape_of_damage`."""
    return shape_of_level(grid, distance_mm)


def outline_at(shape: NeedleShape, depth_mm: float) -> Array:
    """(n, 2) outline (z, r) of the parallel surface ``depth_mm`` inside the zone, as `NeedleShape.outline_mm`.

    Empty where the zone is nowhere that deep.
    """
    if shape.is_empty or float(shape.distance_mm.max()) <= depth_mm:
        return _frozen(np.empty((0, 2)))
    return _frozen(_half_outline(_curves(shape.grid, shape.distance_mm - depth_mm)))


def blend_shapes(first: NeedleShape, second: NeedleShape, share: float) -> NeedleShape:
    """The zone on the way from one to another on the same grid, at ``share`` (0: the first, 1: the second).

    Distances are mixed, so that the surface moves evenly. On the way from nothing there is nothing until the end.
    """
    if share <= 0.0 or first.is_empty:
        return second if share >= 1.0 else first
    if share >= 1.0 or second.is_empty:
        return second
    grid = first.grid
    mixed = (1.0 - share) * first.distance_mm + share * second.distance_mm
    if (mixed < 0.0).all():
        return _nothing(grid)
    return _measured(grid, mixed, _curves(grid, mixed))


def _nothing(grid: NeedleGrid) -> NeedleShape:
    nothing = np.full((grid.rows, grid.columns), -np.inf)
    return NeedleShape(grid, _frozen(nothing), _frozen(np.empty((0, 2))), 0.0, 0.0, 0.0, 0.0)


def _curves(grid: NeedleGrid, level: Array) -> list[Array]:
    """Closed curves (z, r) of level 0, mirrored at the axis, so that they close there."""
    both = np.concatenate([level[:, ::-1], level], axis=1)
    return [
        np.stack(
            [grid.first_z_mm + c[:, 0] * grid.spacing_mm, (c[:, 1] - (grid.columns - 0.5)) * grid.spacing_mm], axis=1
        )
        for c in measure.find_contours(both, 0.0)  # type: ignore[no-untyped-call]
    ]


def _half_outline(curves: list[Array]) -> Array:
    """The longest curve's half beside the axis, from tip side to hub side."""
    largest = max(curves, key=lambda c: float(np.ptp(c[:, 0])))
    middle = 0.5 * (float(largest[:, 0].min()) + float(largest[:, 0].max()))
    half = largest[largest[:, 1] >= -1e-9]
    return half[np.argsort(np.arctan2(half[:, 1], half[:, 0] - middle))]


def _shape(grid: NeedleGrid, level: Array) -> NeedleShape:
    curves = _curves(grid, level)
    points = np.stack(np.meshgrid(grid.z_mm, grid.r_mm, indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.full(len(points), np.inf)
    for curve in curves:
        distance = np.minimum(distance, _distance_to(curve, points))
    table = distance.reshape(level.shape)
    signed = np.where(level >= 0.0, table, -table)
    return _measured(grid, signed, curves)


def _measured(grid: NeedleGrid, signed: Array, curves: list[Array]) -> NeedleShape:
    every = np.concatenate(curves)
    low, high = float(every[:, 0].min()), float(every[:, 0].max())
    share = np.clip(0.5 + signed / grid.spacing_mm, 0.0, 1.0)
    volume = float((share * grid.volumes_mm3).sum())
    return NeedleShape(
        grid, _frozen(signed), _frozen(_half_outline(curves)), high - low, 2.0 * float(every[:, 1].max()),
        0.5 * (low + high), 1e-3 * volume,
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
