"""A volume on the grid of another one."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

__all__ = ["resample_rigid"]


def resample_rigid(moving: Volume, onto: Volume, moving_to_fixed: Rigid, *, outside: float) -> Volume:
    """``moving`` as it lies in the fixed image's space, trilinear, on the grid of ``onto``, in its own scalar type.

    Parameters
    ----------
    moving_to_fixed : Rigid
        RAS mm.
    outside : float
        Value where ``moving`` has no data.
    """
    index = moving.index_from_ras @ moving_to_fixed.inverse().matrix @ onto.ras_from_index
    reverse = index[:3, :3][::-1, ::-1]
    source = moving.array
    values = affine_transform(
        source.astype(np.float32), reverse, index[:3, 3][::-1], onto.array.shape, order=1, mode="constant", cval=outside
    )
    if np.issubdtype(source.dtype, np.integer):
        limits = np.iinfo(str(source.dtype))
        values = np.clip(np.rint(values), limits.min, limits.max)
    return Volume.of(values.astype(source.dtype), onto.ras_from_index)
