"""Cubic B-splines on nodes one apart, as displacement fields with few parameters are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["bspline", "bspline_slope"]

Array = NDArray[np.float64]


def bspline(at: Array, count: int) -> Array:
    """(n, count) values of those about nodes 0, 1 … at places ``at`` (n,), in node spacings."""
    far = np.abs(np.asarray(at)[:, None] - np.arange(count))
    inner = 2.0 / 3.0 - far**2 + 0.5 * far**3
    return np.asarray(np.where(far < 1.0, inner, np.maximum(2.0 - far, 0.0) ** 3 / 6.0))


def bspline_slope(at: Array, count: int) -> Array:
    """(n, count) their derivatives, per node spacing."""
    away = np.asarray(at)[:, None] - np.arange(count)
    far = np.abs(away)
    return np.asarray(
        np.where(far < 1.0, -2.0 * far + 1.5 * far**2, -0.5 * np.maximum(2.0 - far, 0.0) ** 2) * np.sign(away)
    )
