"""What a slice, or a short stack of them, shows: known pixels, levels of means, and samples in blocks.

Pixels of metal (a needle) and around it, and of the padding outside a circular field of view, are not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from nav.geometry.volume import Volume
from nav.registration import slice_kernels as kernels
from nav.registration.pyramid import Level
from nav.registration.verdict import ImageRegistrationError

__all__ = ["BANDS", "METAL_HU", "MOST_SLICES", "SliceImage", "SliceSamples"]

Array = NDArray[np.float64]

#: A stack of more is an image of its own: ``register_rigid``.
MOST_SLICES = 8
#: Brighter than this is metal (cortical bone ends below it), and nothing is looked at this close to it.
METAL_HU, METAL_MARGIN_MM = 1500.0, 3.0
#: The smallest value is padding if so many of the pixels have it.
PADDING_SHARE = 0.005
#: Fewer known pixels than this determine nothing.
LEAST_PIXELS = 500
#: Samples of a level; more do not move the result.
MOST_SAMPLES = 60_000
#: Rows and columns of blocks (their product is `kernels.BLOCKS`).
BANDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class SliceSamples:
    """Where a level of a slice is looked at.

    Attributes
    ----------
    points : (n, 3) float32
        mm from the slices' centre, along the axes of the slices' frame.
    values : (n,) float32
    size_mm : float
        Root mean square distance of the points from the centre.
    """

    points: NDArray[np.float32]
    values: NDArray[np.float32]
    size_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class SliceImage:
    """Slices, and which of their pixels are known.

    Attributes
    ----------
    volume : Volume
        (k, j, i) float32, k slices.
    known : (k, j, i) uint8
    metal : (k, j, i) bool
        Pixels of metal, without the margin.
    centre : (3,) float64
        mm, the slices' frame.
    """

    volume: Volume
    known: NDArray[np.uint8]
    metal: NDArray[np.bool_]
    centre: Array

    @classmethod
    def of(cls, slices: Volume, mask: NDArray[np.generic] | None = None) -> SliceImage:
        """Find what is known.

        Raises
        ------
        ImageRegistrationError
            Too many slices, no structure, an empty mask or one on another grid, too few known pixels.
        """
        array = slices.array
        if array.shape[0] > MOST_SLICES:
            raise ImageRegistrationError(
                f"the stack has {array.shape[0]} slices, at most {MOST_SLICES} are taken; register it as an image"
            )
        if mask is not None and mask.shape != array.shape:
            raise ImageRegistrationError(
                f"the slices' mask has {mask.shape} voxels (k, j, i), the slices {array.shape}; resample it"
            )
        if mask is not None and not mask.any():
            raise ImageRegistrationError("the slices' mask is empty; choose the label that covers the body or organ")
        values = np.ascontiguousarray(array, np.float32)
        known = np.isfinite(values)
        if known.any():
            padding = values == values[known].min()
            if padding.sum() >= PADDING_SHARE * padding.size and not padding[known].all():
                known &= ~padding
        metal = values > METAL_HU
        if metal.any():
            pitch = slices.spacing_mm[:2]
            reach = [2 * int(np.ceil(METAL_MARGIN_MM / p)) + 1 for p in pitch]
            shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, reach)
            for k in np.flatnonzero(metal.any(axis=(1, 2))):
                known[k] &= cv2.dilate(metal[k].view(np.uint8), shape) == 0
        if mask is not None:
            known &= mask != 0
        count = int(known.sum())
        if count < LEAST_PIXELS:
            raise ImageRegistrationError(
                f"the slices show something in {count} pixels only (not padding, metal or outside the mask); at least "
                f"{LEAST_PIXELS} are needed"
            )
        if float(np.ptp(values[known])) == 0.0:
            raise ImageRegistrationError(f"the slices are constant ({values[known][0]:g} everywhere)")
        return cls(Volume.of(values, slices.ras_from_index), known.view(np.uint8), metal, slices.centre_ras())

    def level(self, pitch_mm: float) -> tuple[NDArray[np.float32], Array]:
        """Means over about ``pitch_mm``, (k, j, i) NaN where unknown, and (4, 4) their indices to the slices' frame."""
        nk, nj, ni = self.volume.array.shape
        pixel = float(np.sqrt(np.prod(self.volume.spacing_mm[:2])))
        factor = max(1, min(round(pitch_mm / pixel), nj, ni))
        out = np.empty((nk, nj // factor, ni // factor), np.float32)
        kernels.slice_level(self.volume.array, self.known, factor, out)
        step = np.diag([factor, factor, 1.0, 1.0])
        step[:2, 3] = (factor - 1) / 2.0
        return out, self.volume.ras_from_index @ step

    def samples(self, level: Level) -> SliceSamples:
        """What is known at the pitch of a level of the CT, in the order of `kernels.BLOCKS` compact blocks."""
        values, grid = self.level(level.pitch_mm)
        k, j, i = np.nonzero(np.isfinite(values))
        every = -(-len(k) // MOST_SAMPLES)
        if every > 1:
            k, j, i = k[::every], j[::every], i[::every]
        order = _in_blocks(j, i)
        k, j, i = k[order], j[order], i[order]
        axes = grid[:3, :3].astype(np.float32)
        origin = (grid[:3, 3] - self.centre).astype(np.float32)
        index = np.stack([i, j, k], axis=1).astype(np.float32)
        points = np.ascontiguousarray(index @ axes.T + origin)
        size = float(np.sqrt((points.astype(np.float64) ** 2).sum(axis=1).mean())) if len(points) else 0.0
        return SliceSamples(points, values[k, j, i], size)


def _in_blocks(j: NDArray[np.intp], i: NDArray[np.intp]) -> NDArray[np.intp]:
    """(n,) order in which every block of samples is a compact tile: bands of rows, then of columns, equal shares.

    The kernel's block b holds the samples from ``n b // BLOCKS`` on.
    """
    n = len(j)
    rows, columns = j.astype(np.int16), i.astype(np.int16)  # 16 bits are sorted by radix
    by_row = np.argsort(rows, kind="stable")
    bounds = [n * (band * BANDS) // kernels.BLOCKS for band in range(BANDS + 1)]
    parts: list[NDArray[np.intp]] = []
    for first, last in pairwise(bounds):
        band = by_row[first:last]
        band = band[np.argsort(columns[band], kind="stable")]
        for _ in range(BANDS):
            block = len(parts)
            inner = [n * b // kernels.BLOCKS - first for b in (block, block + 1)]
            # Within a block in the order of memory.
            parts.append(np.sort(band[inner[0] : inner[1]]))
    return np.concatenate(parts)
