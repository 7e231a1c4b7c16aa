"""Axes about a direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["axes_along"]


def axes_along(direction: ArrayLike) -> NDArray[np.float64]:
    """(3, 3) right-handed rotation whose columns are two directions across a unit ``direction``, and itself as +Z."""
    z = np.asarray(direction, dtype=np.float64)
    x = np.cross(z, np.eye(3)[int(np.argmin(np.abs(z)))])
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)
