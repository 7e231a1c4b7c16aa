"""Displacement fields: where every point of one space lies in another one, by a vector at nodes and lines between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates

from nav.geometry.volume import Volume, VolumeError

__all__ = ["DisplacementField"]

Array = NDArray[np.float64]

#: A field holds to half a node beyond its last ones, where the nearest value stands (as in ITK).
_BEYOND = 0.5
#: A point whose image is looked for is found when it is this near, mm.
_FOUND_MM = 1e-4
_MOST_STEPS = 50
#: Nodes; differences over it give the derivative.
_DELTA = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class DisplacementField:
    """``T(x) = x + d(x)``, with d trilinear between nodes.

    Attributes
    ----------
    vectors : (k, j, i, 3) float32, read-only
        Displacement at the nodes, RAS mm.
    ras_from_index : (4, 4) float64, read-only
        Takes (i, j, k, 1) at the nodes to RAS mm of the space that is mapped.
    """

    vectors: NDArray[np.float32]
    ras_from_index: Array

    @classmethod
    def of(cls, vectors: NDArray[np.floating], ras_from_index: ArrayLike) -> DisplacementField:
        """Check and freeze.

        Raises
        ------
        VolumeError
            Another shape, a value that is not finite, or a grid that is none.
        """
        if vectors.ndim != 4 or vectors.shape[3] != 3:
            raise VolumeError(f"a displacement field has shape (k, j, i, 3), not {vectors.shape}")
        grid = Volume.of(np.zeros(vectors.shape[:3], np.uint8), ras_from_index)
        values = np.array(vectors, np.float32, order="C")
        bad = int(np.count_nonzero(~np.isfinite(values).all(axis=3)))
        if bad:
            raise VolumeError(f"the displacement field is not finite at {bad} of {values[..., 0].size} nodes")
        values.setflags(write=False)
        return cls(values, grid.ras_from_index)

    @property
    def grid(self) -> Volume:
        """The nodes as a volume; its values mean nothing."""
        return Volume.of(np.zeros(self.vectors.shape[:3], np.uint8), self.ras_from_index)

    def at_nodes_of(self, grid: Volume) -> DisplacementField:
        """The same field on other nodes: those of ``grid``; beyond its own the nearest value."""
        vectors = self._sample(self.grid.to_index(grid.voxels_ras())).reshape(*grid.array.shape, 3)
        return DisplacementField.of(vectors, grid.ras_from_index)

    def inverse_on(self, grid: Volume) -> DisplacementField:
        """The inverse, on the nodes of ``grid`` in the space that is mapped to; where it is not known, the nearest."""
        nodes = grid.voxels_ras()
        vectors = (self.preimage(nodes) - nodes).reshape(*grid.array.shape, 3)
        unknown = ~np.isfinite(vectors).all(axis=3)
        if unknown.all():
            raise VolumeError("the displacement field leads nowhere into the grid that its inverse is wanted on")
        if unknown.any():
            nearest = distance_transform_edt(
                unknown, grid.spacing_mm[::-1], return_distances=False, return_indices=True
            )
            vectors = vectors[tuple(nearest)]
        return DisplacementField.of(vectors, grid.ras_from_index)

    def contains(self, points_ras: ArrayLike) -> NDArray[np.bool_]:
        """(n,) whether the field says something at points, (n, 3) RAS mm."""
        index = self.grid.to_index(np.atleast_2d(np.asarray(points_ras, np.float64)))
        top = np.array(self.vectors.shape[2::-1]) - 1 + _BEYOND + 1e-6
        return np.asarray(((index >= -_BEYOND - 1e-6) & (index <= top)).all(axis=1))

    def displacement_at(self, points_ras: ArrayLike) -> Array:
        """(n, 3) RAS mm at points, (n, 3) RAS mm; NaN outside the field."""
        points = np.atleast_2d(np.asarray(points_ras, np.float64))
        out = self._sample(self.grid.to_index(points))
        out[~self.contains(points)] = np.nan
        return out

    def apply(self, points_ras: ArrayLike) -> Array:
        """(n, 3) where points, (n, 3) RAS mm, are taken to; NaN outside the field."""
        points = np.atleast_2d(np.asarray(points_ras, np.float64))
        return np.asarray(points + self.displacement_at(points))

    def preimage(self, points_ras: ArrayLike) -> Array:
        """(n, 3) which points are taken to ``points_ras``, (n, 3) RAS mm; NaN where none of the field is.

        Newton's method on the trilinear field; a step that does not come nearer is halved.
        """
        to = np.atleast_2d(np.asarray(points_ras, np.float64))
        grid = self.grid
        a = self.ras_from_index[:3, :3]
        x = grid.to_index(to)
        x = grid.to_index(to - self._sample(x))
        away = self._miss(grid, x, to)
        size = np.linalg.norm(away, axis=1)
        active = np.flatnonzero(size > _FOUND_MM)
        for _ in range(_MOST_STEPS):
            if not len(active):
                break
            here = x[active]
            derivative = np.empty((len(active), 3, 3))
            for axis in range(3):
                step = np.zeros(3)
                step[axis] = _DELTA
                difference = self._sample(here + step) - self._sample(here - step)
                derivative[:, :, axis] = a[:, axis] + difference / (2.0 * _DELTA)
            move = -np.linalg.solve(derivative + 1e-9 * np.eye(3), away[active][..., None])[..., 0]
            share = np.ones(len(active))
            for _ in range(6):
                tried = here + share[:, None] * move
                miss = self._miss(grid, tried, to[active])
                worse = np.linalg.norm(miss, axis=1) > size[active]
                if not worse.any():
                    break
                share[worse] *= 0.5
            x[active], away[active] = tried, miss
            size[active] = np.linalg.norm(miss, axis=1)
            active = active[size[active] > _FOUND_MM]
        out = grid.to_ras(x)
        out[(size > 10.0 * _FOUND_MM) | ~self.contains(out)] = np.nan
        return out

    def _miss(self, grid: Volume, index: Array, to: Array) -> Array:
        return np.asarray(grid.to_ras(index) + self._sample(index) - to)

    def _sample(self, index: Array) -> Array:
        """(n, 3) at indices (n, 3) (i, j, k); beyond the nodes the nearest value."""
        where = index[:, ::-1].T
        return np.stack(
            [map_coordinates(self.vectors[..., c], where, np.float64, order=1, mode="nearest") for c in range(3)],
            axis=1,
        )
