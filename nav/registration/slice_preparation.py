"""A CT made ready for slices: averaged over the slice thickness along their normal, and its pyramid.

This is done once, before the procedure; what a slice shows is then one look-up per pixel. Slices that lean against the
direction prepared for see the average taken askew: by at most half the thickness times the sine of the angle to either
side, which widens the profile sideways and, being symmetric, does not shift it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.geometry.volume import Volume
from nav.registration import slice_kernels as kernels
from nav.registration.pyramid import LEAST_VOXELS, Level, image_pyramid, mask_at
from nav.registration.verdict import ImageRegistrationError

__all__ = ["COARSEST_MM", "FINEST_MM", "MOST_THICKNESS_MM", "SlicePreparation", "prepare_for_slices"]

#: Coarsest level, mm: about the capture range, so that what belongs together overlaps.
COARSEST_MM = 9.0
#: Levels finer than this gain nothing against a slice some mm thick.
FINEST_MM = 1.0
#: What CT fluoroscopy comes in, and some more.
MOST_THICKNESS_MM = 20.0
#: The slab mean is the mean of so many trilinear look-ups along the normal.
_LOOK_UPS = 32


@dataclass(frozen=True, slots=True, eq=False)
class SlicePreparation:
    """A CT for slices of one thickness and about one direction.

    Attributes
    ----------
    levels : tuple of Level
        From the finest; averaged over the thickness, NaN outside the mask.
    normal_ras : (3,) float64
        Unit vector that the slices' normal is near to.
    thickness_mm : float
    """

    levels: tuple[Level, ...]
    normal_ras: NDArray[np.float64]
    thickness_mm: float


def prepare_for_slices(
    ct: Volume,
    *,
    thickness_mm: float,
    normal_ras: ArrayLike,
    mask: NDArray[np.generic] | None = None,
    finest_mm: float = FINEST_MM,
) -> SlicePreparation:
    """Average ``ct`` over the slice profile and build its pyramid.

    Parameters
    ----------
    ct : Volume
        HU; any spacing and orientation; finite; at least 8 voxels along every axis.
    thickness_mm : float
        Nominal slice thickness, up to 20 mm (a box profile is taken).
    normal_ras : (3,)
        Direction of the slices' normal in the CT, RAS; any length and sign.
    mask : (k, j, i), optional
        On the grid of ``ct``: where it is looked at, not 0. None: everywhere.
    finest_mm : float
        No level finer than this is used.

    Raises
    ------
    ImageRegistrationError
        The CT is constant, not finite or too thin, the mask empty or on another grid, the thickness not positive or
        too large, or the normal zero.
    """
    normal = np.array(normal_ras, np.float64)
    length = float(np.linalg.norm(normal)) if normal.shape == (3,) else 0.0
    if not (math.isfinite(length) and length > 0.0):
        raise ImageRegistrationError(f"the slices' normal is {normal.tolist()}; give a direction, (3,) RAS")
    if not 0.0 < thickness_mm <= MOST_THICKNESS_MM:
        raise ImageRegistrationError(
            f"the slice thickness is {thickness_mm:g} mm; it must lie above 0 and at most {MOST_THICKNESS_MM:g} mm"
        )
    _check(ct, mask)
    offsets, weights = _stencil(ct, thickness_mm * normal / length)
    # A copy that may not be written to, as the kernel expects it.
    source = np.array(ct.array, np.float32)
    source.setflags(write=False)
    averaged = np.empty_like(source)
    kernels.slab_mean(source, offsets, weights, averaged)
    levels = image_pyramid(Volume.of(averaged, ct.ras_from_index), COARSEST_MM)
    levels = tuple(level for level in levels if level.pitch_mm >= finest_mm) or levels[-1:]
    if float(np.ptp(levels[-1].volume.array)) == 0.0:
        raise ImageRegistrationError(f"the CT is constant ({levels[-1].volume.array.flat[0]:g} everywhere)")
    if mask is not None:
        levels = tuple(_masked(level, mask) for level in levels)
    return SlicePreparation(levels, normal / length, thickness_mm)


def _check(ct: Volume, mask: NDArray[np.generic] | None) -> None:
    if min(ct.array.shape) < LEAST_VOXELS:
        raise ImageRegistrationError(f"the CT has {ct.size} voxels; every axis needs at least {LEAST_VOXELS}")
    if np.issubdtype(ct.array.dtype, np.floating) and not np.isfinite(ct.array).all():
        bad = int(np.count_nonzero(~np.isfinite(ct.array)))
        raise ImageRegistrationError(f"the CT holds {bad} voxels that are not finite; replace or mask them")
    if mask is not None and mask.shape != ct.array.shape:
        raise ImageRegistrationError(
            f"the CT's mask has {mask.shape} voxels (k, j, i), the CT {ct.array.shape}; resample it"
        )
    if mask is not None and not mask.any():
        raise ImageRegistrationError("the CT's mask is empty; choose the label that covers the body or organ")


def _stencil(ct: Volume, slab: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Offsets (m, 3) in voxels (k, j, i) and weights (m,) of the mean over ``slab``, (3,) mm RAS, about a voxel."""
    along = (ct.index_from_ras[:3, :3] @ slab)[::-1]
    found: dict[tuple[int, ...], float] = {}
    for share in (np.arange(_LOOK_UPS) + 0.5) / _LOOK_UPS - 0.5:
        base = np.floor(along * share + 1e-9)
        part = np.clip(along * share - base, 0.0, 1.0)
        for corner in itertools.product((0, 1), repeat=3):
            weight = float(np.prod(np.where(corner, part, 1.0 - part)))
            if weight > 1e-6:
                place = tuple(int(b) + c for b, c in zip(base, corner, strict=True))
                found[place] = found.get(place, 0.0) + weight
    places = sorted(found)
    weights = np.array([found[place] for place in places])
    return np.array(places, np.int64), (weights / weights.sum()).astype(np.float32)


def _masked(level: Level, mask: NDArray[np.generic]) -> Level:
    array = np.where(mask_at(mask, level) != 0, level.volume.array, np.float32(np.nan))
    return Level(Volume.of(array, level.volume.ras_from_index), level.factors)
