"""Volumes: C-order ``(k, j, i)`` arrays with an affine from voxel indices to RAS mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MOST_SKEW", "Volume", "VolumeError", "orientation_letters"]

#: Above this `Volume.skew` an image file, which knows right angles only, would put voxels where they are not.
MOST_SKEW = 1e-4


class VolumeError(ValueError):
    """An array or affine that cannot be a volume; the message names the value and the limit."""


def orientation_letters(direction_ras: ArrayLike) -> str:
    """Letters of a direction in RAS, strongest first, such as ``"RA"`` (others only above 40 % of the first)."""
    v = np.asarray(direction_ras, dtype=np.float64)
    order = np.argsort(-np.abs(v), kind="stable")
    pairs = (("L", "R"), ("P", "A"), ("I", "S"))
    strongest = abs(v[order[0]])
    if strongest == 0.0:
        return ""
    return "".join(pairs[a][int(v[a] > 0.0)] for a in order if abs(v[a]) > 0.4 * strongest)


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """An image or label map in patient space.

    Attributes
    ----------
    array : (k, j, i) C-contiguous, read-only
        int16 for CT in HU; uint8/uint16 for labels.
    ras_from_index : (4, 4) float64, read-only
        Takes ``(i, j, k, 1)`` at voxel centres to RAS mm. May be oblique or left-handed, never singular.
    """

    array: NDArray[np.generic]
    ras_from_index: NDArray[np.float64]

    @classmethod
    def of(cls, array: NDArray[np.generic], ras_from_index: ArrayLike) -> Volume:
        """Check and freeze. Copies only what is not C-contiguous (or is writeable and not owned)."""
        a = np.ascontiguousarray(array)
        m = np.array(ras_from_index, dtype=np.float64)
        if a.ndim != 3 or 0 in a.shape:
            raise VolumeError(f"volume array has shape {a.shape}, expected three non-empty axes (k, j, i)")
        if m.shape != (4, 4) or not np.isfinite(m).all() or np.abs(m[3] - (0, 0, 0, 1)).max() > 1e-9:
            raise VolumeError("ras_from_index is not a finite affine (4, 4) matrix with last row [0, 0, 0, 1]")
        lengths = np.linalg.norm(m[:3, :3], axis=0)
        if lengths.min() <= 0.0 or abs(np.linalg.det(m[:3, :3])) < 1e-9 * lengths.prod():
            raise VolumeError(f"ras_from_index is singular; spacings {lengths.tolist()} mm")
        view = a.view()
        view.setflags(write=False)
        m.setflags(write=False)
        return cls(view, m)

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """(3,) voxel pitch along i, j, k."""
        return np.asarray(np.linalg.norm(self.ras_from_index[:3, :3], axis=0), dtype=np.float64)

    @property
    def skew(self) -> float:
        """Largest cosine between two axes: 0 at right angles, above in a sheared grid (gantry tilt)."""
        axes = self.ras_from_index[:3, :3] / self.spacing_mm
        return float(np.abs(axes.T @ axes - np.eye(3)).max())

    @property
    def index_from_ras(self) -> NDArray[np.float64]:
        """(4, 4) inverse of `ras_from_index`."""
        return np.asarray(np.linalg.inv(self.ras_from_index), dtype=np.float64)

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxel counts along i, j, k."""
        k, j, i = self.array.shape
        return i, j, k

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel."""
        return float(abs(np.linalg.det(self.ras_from_index[:3, :3])))

    def to_ras(self, index: ArrayLike) -> NDArray[np.float64]:
        """Map (i, j, k) indices, shape (3,) or (n, 3), to RAS mm."""
        return np.asarray(index, dtype=np.float64) @ self.ras_from_index[:3, :3].T + self.ras_from_index[:3, 3]

    def voxels_ras(self) -> NDArray[np.float64]:
        """(n, 3) RAS mm of every voxel centre, in the order of memory."""
        k, j, i = (axis.ravel() for axis in np.indices(self.array.shape))
        return self.to_ras(np.stack([i, j, k], axis=1))

    def to_index(self, ras: ArrayLike) -> NDArray[np.float64]:
        """Map RAS mm, shape (3,) or (n, 3), to continuous (i, j, k) indices."""
        inv = self.index_from_ras
        return np.asarray(ras, dtype=np.float64) @ inv[:3, :3].T + inv[:3, 3]

    def holds(self, ras: ArrayLike) -> NDArray[np.bool_]:
        """(n,) whether the voxels nearest to (n, 3) RAS mm points are above 0; beyond the grid none is."""
        # Half-way points all go up: rounded to even, a grid half a voxel off would see every second voxel twice.
        index = np.floor(self.to_index(np.atleast_2d(np.asarray(ras, dtype=np.float64))) + 0.5).astype(np.int64)
        within = ((index >= 0) & (index < np.array(self.size))).all(axis=1)
        out = np.zeros(len(index), np.bool_)
        i, j, k = index[within].T
        out[within] = np.asarray(self.array)[k, j, i] > 0
        return out

    def centre_ras(self) -> NDArray[np.float64]:
        """RAS mm of the middle of the grid."""
        return self.to_ras((np.array(self.size) - 1) / 2.0)

    def corners_ras(self) -> NDArray[np.float64]:
        """(8, 3) RAS mm of the outermost voxel centres."""
        top = np.array(self.size) - 1
        return self.to_ras(np.array([[a, b, c] for a in (0, top[0]) for b in (0, top[1]) for c in (0, top[2])]))

    def same_grid_as(self, other: Volume, tolerance_mm: float = 1e-3) -> bool:
        """True when both have the same shape and their corners agree within ``tolerance_mm``."""
        return self.array.shape == other.array.shape and bool(
            np.abs(self.corners_ras() - other.corners_ras()).max() <= tolerance_mm
        )
