"""A volume on the grid of another one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, map_coordinates

from nav.geometry.displacement import DisplacementField
from nav.geometry.rigid import Rigid
from nav.geometry.volume import MOST_SKEW, Volume

__all__ = ["coarser_grid", "resample_displaced", "resample_rigid", "upright_grid"]


def upright_grid(volume: Volume) -> Volume:
    """A grid with axes at right angles that covers ``volume``: itself, but for a sheared one (gantry tilt).

    The axes i and j and the spacings are kept; k stands on them. Where it is another grid, its array is empty (zeros).
    """
    if volume.skew < MOST_SKEW:
        return volume
    spacing = volume.spacing_mm
    axes = volume.ras_from_index[:3, :3] / spacing
    k = np.cross(axes[:, 0], axes[:, 1])
    upright = np.stack([axes[:, 0], np.cross(k, axes[:, 0]) / np.linalg.norm(k), k / np.linalg.norm(k)], axis=1)
    upright[:, 1:] *= np.sign((upright[:, 1:] * axes[:, 1:]).sum(axis=0))
    # The step between slices along their normal, not along the tilt.
    spacing = np.array([spacing[0], spacing[1], spacing[2] * abs(float(upright[:, 2] @ axes[:, 2]))])
    corners = volume.corners_ras() @ upright
    size = np.ceil((corners.max(axis=0) - corners.min(axis=0)) / spacing - 1e-6).astype(int) + 1
    grid = np.eye(4)
    grid[:3, :3] = upright * spacing
    grid[:3, 3] = upright @ corners.min(axis=0)
    return Volume.of(np.zeros(tuple(size[::-1]), np.uint8), grid)


def coarser_grid(volume: Volume, spacing_mm: NDArray[np.float64]) -> Volume:
    """A grid of about ``spacing_mm`` (3,) along i, j, k whose nodes cover ``volume``: whole voxels apart; empty."""
    step = np.maximum(1, np.round(spacing_mm / volume.spacing_mm)).astype(int)
    nodes = (np.array(volume.size) - 2 + step) // step + 1
    return Volume.of(np.zeros(tuple(nodes[::-1]), np.uint8), volume.ras_from_index @ np.diag([*step, 1.0]))


def resample_rigid(
    moving: Volume, onto: Volume, moving_to_fixed: Rigid, *, outside: float, nearest: bool = False
) -> Volume:
    """``moving`` as it lies in the fixed image's space, on the grid of ``onto``, in its own scalar type.

    Parameters
    ----------
    moving_to_fixed : Rigid
        RAS mm.
    outside : float
        Value where ``moving`` has no data.
    nearest : bool
        The value of the nearest voxel (labels) instead of a trilinear one.
    """
    index = moving.index_from_ras @ moving_to_fixed.inverse().matrix @ onto.ras_from_index
    reverse = index[:3, :3][::-1, ::-1]
    source = moving.array
    values = affine_transform(
        source.astype(np.float64 if nearest else np.float32), reverse, index[:3, 3][::-1], onto.array.shape,
        order=0 if nearest else 1, mode="constant", cval=outside,
    )  # fmt: skip
    return Volume.of(_as_stored(values, source.dtype), onto.ras_from_index)


def resample_displaced(
    moving: Volume, onto: Volume, fixed_to_moving: DisplacementField, *, outside: float, nearest: bool = False
) -> Volume:
    """As `resample_rigid`, through a displacement field; ``outside`` also where the field says nothing."""
    source = moving.array
    values = source.astype(np.float64 if nearest else np.float32)
    out = np.empty(onto.array.shape, source.dtype)
    j, i = (axis.ravel() for axis in np.indices(onto.array.shape[1:]))
    for k in range(len(out)):  # plane by plane: the coordinates of all of a CT would take a gigabyte
        there = fixed_to_moving.apply(onto.to_ras(np.stack([i, j, np.full_like(i, k)], axis=1)))
        lost = ~np.isfinite(there).all(axis=1)
        there[lost] = 0.0
        at = moving.to_index(there)[:, ::-1].T
        plane = map_coordinates(values, at, order=0 if nearest else 1, mode="constant", cval=outside)
        plane[lost] = outside
        out[k] = _as_stored(plane, source.dtype).reshape(out.shape[1:])
    return Volume.of(out, onto.ras_from_index)


def _as_stored(values: NDArray[np.floating], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(str(dtype))
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)
