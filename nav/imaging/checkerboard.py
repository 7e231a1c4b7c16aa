"""Two images in one picture, in alternating squares: edges that run on across the squares lie where they should."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from nav.geometry.volume import Volume

__all__ = ["checkerboard"]

#: Squares along the longer side of each plane, and the height of the picture.
SQUARES, HEIGHT_PX = 8, 480


def checkerboard(fixed: Volume, warped: Volume) -> NDArray[np.uint8]:
    """The three middle planes side by side, (height, width) uint8, pixels square in mm.

    Parameters
    ----------
    fixed, warped : Volume
        On one grid and of one modality: both are shown in one window, from the 1st to the 99th percentile of what is
        neither's padding (its smallest value).

    Raises
    ------
    ValueError
        The two have different shapes.
    """
    if fixed.array.shape != warped.array.shape:
        raise ValueError(f"the images have {fixed.array.shape} and {warped.array.shape} voxels, they must share a grid")
    spacing = fixed.spacing_mm[::-1]
    # Rows and columns run to the patient's left, back and feet: the view of a radiologist.
    axes = fixed.ras_from_index[:3, :3]
    turn = tuple(slice(None, None, -1 if a[np.argmax(np.abs(a))] > 0.0 else 1) for a in axes.T[::-1])
    arrays = [v.array[turn] for v in (fixed, warped)]
    shown = np.concatenate([a[::3, ::3, ::3][a[::3, ::3, ::3] > a.min()] for a in arrays]).astype(np.float32)
    low, high = (float(v) for v in np.percentile(shown, (1.0, 99.0))) if shown.size else (0.0, 1.0)
    gain = 255.0 / max(high - low, 1e-6)
    planes = []
    for axis in range(3):
        cut: list[slice | int] = [slice(None)] * 3
        cut[axis] = fixed.array.shape[axis] // 2
        pitch = np.delete(spacing, axis)
        one, two = (np.clip((a[tuple(cut)].astype(np.float32) - low) * gain, 0.0, 255.0) for a in arrays)
        height, width = (np.array(one.shape) * pitch).tolist()
        size = (max(1, round(HEIGHT_PX * width / height)), HEIGHT_PX)
        big = [cv2.resize(p, size, interpolation=cv2.INTER_LINEAR) for p in (one, two)]
        square = max(size) / SQUARES
        rows, columns = np.indices((size[1], size[0]))
        odd = (np.floor(rows / square) + np.floor(columns / square)) % 2 > 0
        planes.append(np.where(odd, big[1], big[0]))
    return np.ascontiguousarray(np.concatenate(planes, axis=1), np.uint8)
