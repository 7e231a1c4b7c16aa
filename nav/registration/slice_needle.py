"""The shadow of a needle in CT slices: a band along its shaft that shows the artefact, not the tissue.

Beside a shaft in the plane, and beyond its tip, rays that pass the metal lengthwise leave dark bands some hundred HU
deep. They move with the needle, so whatever follows tissue around the tip would follow them instead; they are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from nav.registration.slice_image import LEAST_PIXELS, SliceImage

__all__ = ["without_shadow"]

#: A piece of metal at least so long, and so many times as long as wide, is a needle.
NEEDLE_MM, NEEDLE_RATIO = 15.0, 4.0
#: The shadow reaches so far to either side of the shaft, and along its line beyond its ends.
BESIDE_MM, BEYOND_MM = 11.0, 60.0
#: Within that it is measured, in pieces beyond the shaft so long and strips beside the line so wide: a strip whose
#: median residual is so many standard deviations of a pixel's noise lies in the shadow.
PIECE_MM, STRIP_MM, SHADOW_NOISE = 30.0, 2.0, 0.8
#: Fewer pixels than this say nothing of a strip.
LEAST_OF_STRIP = 12

#: Residuals, HU, at pixels (n, 3) (i, j, k); NaN where unknown.
Residuals = Callable[[NDArray[np.intp]], NDArray[np.float64]]


def without_shadow(image: SliceImage, residuals: Residuals | None = None, noise_hu: float = 0.0) -> SliceImage:
    """The same slices, the shadow of a needle in their plane not known; unchanged where too little would be left.

    Parameters
    ----------
    image : SliceImage
    residuals : callable, optional
        What is left of the slices at a pose about right: how wide the shadow is, is taken from it. None: as wide and
        as long as one can be.
    noise_hu : float
        Standard deviation of the noise of a pixel; used with ``residuals``.
    """
    known = image.known.copy()
    pitch = image.volume.spacing_mm[:2]
    for k in np.flatnonzero(image.metal.any(axis=(1, 2))):
        line = _needle(image.metal[k], pitch)
        if line is None:
            continue
        s, across, length = line
        if residuals is None:
            known[k][(across < BESIDE_MM) & (s > -BEYOND_MM) & (s < length + BEYOND_MM)] = 0
            continue
        for first in (-2 * PIECE_MM, -PIECE_MM, 0.0, length, length + PIECE_MM):
            last = length if first == 0.0 else first + PIECE_MM
            part = (s >= first) & (s < last) & (across < BESIDE_MM)
            j, i = np.nonzero(part & (known[k] != 0))
            left = residuals(np.stack([i, j, np.full(len(i), k)], axis=1))
            width = _width_mm(across[j, i], left, SHADOW_NOISE * noise_hu)
            known[k][part & (across < width)] = 0
    return replace(image, known=known) if int(known.sum()) >= LEAST_PIXELS else image


def _width_mm(across: NDArray[np.float64], left: NDArray[np.float64], least_hu: float) -> float:
    """How far the outermost strip reaches in whose median more than ``least_hu`` is left; 0 if there is none."""
    strips = (across / STRIP_MM).astype(np.intp)
    width = 0.0
    for strip in range(math.ceil(BESIDE_MM / STRIP_MM)):
        here = left[(strips == strip) & np.isfinite(left)]
        if len(here) >= LEAST_OF_STRIP and abs(float(np.median(here))) > least_hu:
            width = (strip + 1) * STRIP_MM
    return width


def _needle(
    metal: NDArray[np.bool_], pitch_mm: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float] | None:
    """Where pixels (j, i) lie along the line of the largest piece of ``metal``, how far from it, and its length, mm.

    Places start at one of its ends; None if it is no needle.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(metal.view(np.uint8), connectivity=8)
    j, i = np.nonzero(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))
    if len(j) < 3:
        return None
    points = np.stack([i, j], axis=1) * pitch_mm
    middle = points.mean(axis=0)
    spread, axes = np.linalg.eigh(np.cov((points - middle).T))
    along = (points - middle) @ axes[:, 1]
    length = float(np.ptp(along))
    if length < NEEDLE_MM or spread[1] < NEEDLE_RATIO**2 * spread[0]:
        return None
    rows, columns = np.indices(metal.shape)
    away = np.stack([columns, rows], axis=-1) * pitch_mm - middle
    return away @ axes[:, 1] - along.min(), np.abs(away @ axes[:, 0]), length
