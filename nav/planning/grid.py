"""The common grid of a plan, and on it a lower bound of the distance to any mask, whatever grid that was drawn on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.geometry.volume import Volume
from nav.planning import kernels
from nav.planning.kernels import FARTHEST_MM, STEP_MM

__all__ = ["Grid", "PlanningError"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

#: Cells are brought to about this size, mm: voxels are joined, or cut, in whole numbers.
PITCH_MM = 1.25
#: Room around everything a path touches, mm.
AROUND_MM = 2.0
#: Cells of a plan at most; above it they get larger.
MOST_CELLS = 24_000_000


class PlanningError(ValueError):
    """What was given cannot be planned with; the message says what, which value, and what to do."""


def _frozen(array: ArrayLike) -> Array:
    out = np.array(array, dtype=np.float64, order="C")
    out.setflags(write=False)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A box of cells whose borders are voxel borders of a lattice (`Grid.over`).

    Attributes
    ----------
    ras_from_cell : (4, 4) float64
        Takes (i, j, k, 1) at the middles of cells to RAS mm; axes at right angles.
    shape : (k, j, i)
    pitch_mm : (3,) float64
        Along i, j, k.
    """

    ras_from_cell: Array
    shape: tuple[int, int, int]
    pitch_mm: Array

    @classmethod
    def over(cls, lattice: Volume, points_ras: ArrayLike, *, pitch_mm: float = PITCH_MM) -> Grid:
        """Cells of about ``pitch_mm`` around (n, 3) points, nested in the voxels of ``lattice`` (or they in them).

        Raises
        ------
        PlanningError
            No point, or a sheared lattice.
        """
        points = np.atleast_2d(np.asarray(points_ras, np.float64))
        if not points.size:
            raise PlanningError("there is no point to plan around")
        if lattice.skew > 1e-3:
            raise PlanningError(
                f"the grid's axes are not at right angles (cosine {lattice.skew:.2g}, limit 0.001); resample the image"
            )
        index = lattice.to_index(points)
        spacing = lattice.spacing_mm
        while True:
            joined = np.maximum(1, np.floor(pitch_mm * 1.01 / spacing)).astype(int)
            cut = np.maximum(1, np.ceil(spacing / (pitch_mm * 1.01))).astype(int)
            scale = joined / cut  # voxels per cell
            low = np.floor((index.min(axis=0) - AROUND_MM / spacing) / scale)
            high = np.ceil((index.max(axis=0) + AROUND_MM / spacing) / scale)
            counts = (high - low + 1).astype(int)
            if counts.prod() <= MOST_CELLS:
                break
            pitch_mm *= 1.15
        # Cell c covers the voxel coordinates [c · scale − ½, (c + 1) · scale − ½].
        voxel_from_cell = np.eye(4)
        voxel_from_cell[:3, :3] = np.diag(scale)
        voxel_from_cell[:3, 3] = low * scale - 0.5 + scale / 2.0
        return cls(
            _frozen(lattice.ras_from_index @ voxel_from_cell),
            (int(counts[2]), int(counts[1]), int(counts[0])),
            _frozen(spacing * scale),
        )

    def local_mm(self, ras: ArrayLike) -> Array:
        """(n, 3) RAS mm to mm along the grid's axes from the middle of the first cell; lengths stay."""
        inverse = np.linalg.inv(self.ras_from_cell)
        points = np.atleast_2d(np.asarray(ras, np.float64))
        return _frozen((points @ inverse[:3, :3].T + inverse[:3, 3]) * self.pitch_mm)

    def centres_ras(self, cells: Bools) -> Array:
        """(n, 3) RAS mm of the marked cells' middles."""
        index = np.argwhere(cells)[:, ::-1].astype(np.float64)
        return np.asarray(index @ self.ras_from_cell[:3, :3].T + self.ras_from_cell[:3, 3])

    @property
    def half_diagonal_mm(self) -> float:
        """Of one cell."""
        return 0.5 * float(np.linalg.norm(self.pitch_mm))

    def mark(self, mask: Volume, *, outside: bool = False) -> tuple[Bools, float]:
        """Cells that hold a part of ``mask`` (or with ``outside`` of what is not mask), and how far parts may lie
        beyond them, mm: 0 where voxels and cells nest, else less than half a voxel.

        Beyond the mask's own grid nothing is mask.
        """
        filled = np.asarray(mask.array) > 0
        if outside:
            filled = ~filled
        m = np.linalg.inv(self.ras_from_cell) @ mask.ras_from_index  # cell index from voxel index
        axes = np.argmax(np.abs(m[:3, :3]), axis=0)  # the cell axis of every voxel axis
        aligned = sorted(axes) == [0, 1, 2]
        if aligned:
            rest = m[:3, :3].copy()
            rest[axes, range(3)] = 0.0
            aligned = float(np.abs(rest).sum(axis=0) @ np.array(mask.size)) < 0.05
        if aligned:
            marked, slack = self._mark_aligned(filled, m, axes)
        else:
            marked, slack = self._scatter(filled, mask, m)
        if outside:
            marked |= ~self._inside_of(m, mask.size)
        return marked, slack

    def _mark_aligned(self, filled: Bools, m: Array, axes: NDArray[np.intp]) -> tuple[Bools, float]:
        # Bring the array to the order and direction of the cells.
        order = [int(np.flatnonzero(axes == cell)[0]) for cell in range(3)]  # voxel axis of cell axis i, j, k
        array = filled.transpose([2 - order[2], 2 - order[1], 2 - order[0]])
        slack = np.zeros(3)
        for cell in range(3):
            voxel = order[cell]
            scale, offset = m[cell, voxel], m[cell, 3]
            size = array.shape[2 - cell]
            parts = max(1, math.ceil(abs(scale) - 1e-3))  # a voxel wider than a cell is looked at in pieces
            piece = abs(scale) / parts
            at = offset + scale * ((np.arange(size * parts) + 0.5) / parts - 0.5)
            ratio = 1.0 / piece
            first_border = (offset - scale * 0.5 + 0.5) * ratio
            drift = abs(piece - 1.0 / max(round(ratio), 1)) * size * parts
            nested = drift < 0.01 and abs(first_border - round(first_border)) < 0.01
            slack[cell] = 0.0 if nested else 0.5 * piece * self.pitch_mm[cell]
            index = np.floor(at + 0.5 + 1e-9 * np.sign(scale)).astype(int)
            source = np.repeat(np.arange(size), parts)
            if scale < 0.0:
                index, source = index[::-1], source[::-1]
            keep = (index >= 0) & (index < self.shape[2 - cell])
            index, source = index[keep], source[keep]
            shape = list(array.shape)
            shape[2 - cell] = self.shape[2 - cell]
            pooled = np.zeros(shape, bool)
            if index.size:
                starts = np.flatnonzero(np.diff(index, prepend=-1))
                taken = np.take(array, source, axis=2 - cell)
                place: list[slice | NDArray[np.intp]] = [slice(None)] * 3
                place[2 - cell] = index[starts]
                pooled[tuple(place)] = np.logical_or.reduceat(taken, starts, axis=2 - cell)
            array = pooled
        return np.ascontiguousarray(array), float(np.linalg.norm(slack))

    def _scatter(self, filled: Bools, mask: Volume, m: Array) -> tuple[Bools, float]:
        index = np.argwhere(filled)[:, ::-1].astype(np.float64)
        parts = np.maximum(1, np.ceil(mask.spacing_mm / (0.7 * self.pitch_mm.min()))).astype(int)
        marked = np.zeros(self.shape, bool)
        offsets = [(np.arange(p) + 0.5) / p - 0.5 for p in parts]
        for a in offsets[0]:
            for b in offsets[1]:
                for c in offsets[2]:
                    at = np.rint((index + np.array([a, b, c])) @ m[:3, :3].T + m[:3, 3]).astype(int)
                    at = at[((at >= 0) & (at < self.shape[::-1])).all(axis=1)]
                    marked[at[:, 2], at[:, 1], at[:, 0]] = True
        return marked, 0.5 * float(np.linalg.norm(mask.spacing_mm / parts))

    def _inside_of(self, m: Array, size: tuple[int, int, int]) -> Bools:
        """Cells that lie in a voxel grid with their whole box (up to a thousandth of a cell)."""
        inverse = np.linalg.inv(m)
        grids = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in self.shape), indexing="ij", sparse=True)
        inside = np.ones(self.shape, bool)
        half = 0.5 * np.abs(inverse[:3, :3]).sum(axis=1) * 0.999
        for axis in range(3):
            at = inverse[axis, 3] + sum(inverse[axis, 2 - g] * grids[g] for g in range(3))
            inside &= (at - half[axis] >= -0.5) & (at + half[axis] <= size[axis] - 0.5)
        return inside

    def distance(self, marked: Bools, slack_mm: float = 0.0) -> Bytes:
        """Lower bound of the distance from every cell's middle to the marked cells' boxes, less ``slack_mm``.

        Returns
        -------
        (k, j, i) uint8, steps of `STEP_MM`, at most `FARTHEST_MM`
        """
        out = np.empty(self.shape, np.uint8)
        if not marked.any():
            out[:] = round(FARTHEST_MM / STEP_MM)
            return out
        a, b = np.empty(self.shape, np.float32), np.empty(self.shape, np.float32)
        reach = [math.ceil(FARTHEST_MM / p + 0.5) for p in self.pitch_mm]
        cells = np.ascontiguousarray(marked).view(np.uint8)
        cells.setflags(write=False)
        kernels._rows(cells, float(self.pitch_mm[0]), FARTHEST_MM**2, a)
        kernels._columns(a, float(self.pitch_mm[1]), reach[1], b)
        kernels._slices(b, float(self.pitch_mm[2]), reach[2], float(slack_mm), STEP_MM, out)
        return out

    def threshold_mm(self, distance_mm: float) -> float:
        """The interpolated value from which on a point is sure to lie at least ``distance_mm`` away.

        Between cell middles the distance to one box, a convex function, is interpolated from above, by at most half a
        cell's diagonal (it is 1-Lipschitz) and at most Σ pitch²/8 times its curvature, 1/r at the distance r, which in
        the cell is at least the point's distance less a diagonal. Where the second bound is the smaller one, distance
        plus error is convex in the distance, so the ends of that range are the worst.
        """
        half = self.half_diagonal_mm
        bend = float(np.sum(self.pitch_mm**2)) / 8.0

        def error(d: float) -> float:
            return half if d <= 2.0 * half else min(half, bend / (d - 2.0 * half))

        knee = min(distance_mm, 2.0 * half + bend / half)
        return max(distance_mm + error(distance_mm), knee + error(knee))
