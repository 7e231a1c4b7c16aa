"""Axes, poses and extents about a direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.geometry.frames import TransformName
from nav.geometry.rigid import Rigid

__all__ = ["axes_along", "extents_along", "rigid_along"]

#: Directions across in which the largest extent is looked for.
_TURNS = 36


def axes_along(direction: ArrayLike) -> NDArray[np.float64]:
    """(3, 3) right-handed rotation whose columns are two directions across a unit ``direction``, and itself as +Z."""
    z = np.asarray(direction, dtype=np.float64)
    x = np.cross(z, np.eye(3)[int(np.argmin(np.abs(z)))])
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def rigid_along(origin: ArrayLike, direction: ArrayLike, name: TransformName | str) -> Rigid:
    """The pose of a frame at ``origin`` whose +Z is the unit ``direction``; how it is turned about that is not said."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes_along(direction), origin
    return Rigid.from_matrix(matrix, name)


def extents_along(points: ArrayLike, direction: ArrayLike) -> tuple[float, float]:
    """Extent of (n, 3) points along a unit ``direction``, and the largest one across it (5 degrees apart)."""
    at = np.asarray(points, dtype=np.float64)
    one, two, along = axes_along(direction).T
    angles = np.arange(_TURNS) * (np.pi / _TURNS)
    across = at @ (np.cos(angles)[:, None] * one + np.sin(angles)[:, None] * two).T
    return float(np.ptp(at @ along)), float(np.ptp(across, axis=0).max())
