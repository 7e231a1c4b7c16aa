"""A volume on the grid of another one."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform

from nav.geometry.rigid import Rigid
from nav.geometry.volume import MOST_SKEW, Volume

__all__ = ["resample_rigid", "upright_grid"]


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
    if np.issubdtype(source.dtype, np.integer):
        limits = np.iinfo(str(source.dtype))
        values = np.clip(np.rint(values), limits.min, limits.max)
    return Volume.of(values.astype(source.dtype), onto.ras_from_index)
