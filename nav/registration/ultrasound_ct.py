"""The CT beside ultrasound frames: its soft tissue, and the gradient of it, in the pitch of a level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nav.geometry.volume import Volume
from nav.registration.pyramid import LEAST_VOXELS, image_pyramid, mask_at, nearest_level
from nav.registration.ultrasound_kernels import channels
from nav.registration.verdict import ImageRegistrationError

__all__ = ["FLOOR_HU2", "HIGH_HU", "LOW_HU", "channels_at", "soft_tissue_around"]

Array = NDArray[np.float64]

#: HU that soft tissue keeps to: bone and gas beyond would outshine every other edge.
LOW_HU, HIGH_HU = -150.0, 250.0
#: The gradient, HU/mm, is multiplied by this length so that both channels have the same range.
EDGE_MM = 5.0
#: Variance, HU², added to both channels in a fit: contrast far below a CT's noise explains nothing.
FLOOR_HU2 = 25.0
#: The CT is used so far around the frames, mm.
MARGIN_MM = 30.0


def soft_tissue_around(
    fixed: Volume, mask: NDArray[np.generic] | None, points: Array
) -> tuple[Volume, NDArray[np.uint8] | None]:
    """The CT's soft tissue around ``points`` (n, 3) RAS mm, float32 HU, and the mask there.

    Raises
    ------
    ImageRegistrationError
        They share too few voxels.
    """
    low, high = points.min(axis=0) - MARGIN_MM, points.max(axis=0) + MARGIN_MM
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    index = fixed.to_index(corners)
    first = np.maximum(np.floor(index.min(axis=0)).astype(int), 0)
    last = np.minimum(np.ceil(index.max(axis=0)).astype(int) + 1, fixed.size)
    if (last - first < LEAST_VOXELS).any():
        raise ImageRegistrationError(
            "the ultrasound does not lie in the CT: at the start, the frames and the CT share "
            f"{np.maximum(last - first, 0).tolist()} voxels (least {LEAST_VOXELS} along each axis); give a start "
            "(--init) that brings them together"
        )
    cut = tuple(slice(int(a), int(b)) for a, b in zip(first[::-1], last[::-1], strict=True))
    shift = np.eye(4)
    shift[:3, 3] = first
    array = np.clip(fixed.array[cut].astype(np.float32), LOW_HU, HIGH_HU)
    return Volume.of(array, fixed.ras_from_index @ shift), None if mask is None else (mask[cut] != 0).view(np.uint8)


def channels_at(
    ct: Volume, mask: NDArray[np.uint8] | None, pitches_mm: Sequence[float]
) -> list[tuple[Array, NDArray[np.float32]]]:
    """For each pitch the nearest level's index_from_ras and channels (k, j, i, 2); NaN outside the mask."""
    levels = image_pyramid(ct, max(pitches_mm))
    made: dict[int, tuple[Array, NDArray[np.float32]]] = {}
    out = []
    for pitch in pitches_mm:
        n = nearest_level(levels, pitch)
        if n not in made:
            volume = levels[n].volume
            both = np.empty((*volume.array.shape, 2), np.float32)
            turn = EDGE_MM * np.linalg.inv(volume.ras_from_index[:3, :3]).T
            channels(volume.array, np.ascontiguousarray(turn, np.float32), both)
            if mask is not None:
                both[mask_at(mask, levels[n]) == 0] = np.nan
            made[n] = volume.index_from_ras, both
        out.append(made[n])
    return out
