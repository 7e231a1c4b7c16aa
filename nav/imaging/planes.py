"""Planes on the screen: pane pixels to RAS, patient planes, and the roll-locked axes of a needle view.

A pane pixel ``(x, y)`` has integer coordinates **at the pixel's centre**, x to the right and y down. Its matrix
``ras_from_pixel`` takes ``(x, y, depth, 1)`` to RAS mm, where ``depth`` is mm along the unit vector that points into
the screen. The three columns are right-handed, so a picture is never mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.geometry.volume import orientation_letters

__all__ = [
    "AXIAL",
    "CORONAL",
    "SAGITTAL",
    "PlaneAxes",
    "lock_axis_for",
    "needle_axes",
    "pane_letters",
    "pixel_from_ras",
    "pixel_to_ras",
    "plane_matrix",
    "ras_to_pixel",
]

Vector = NDArray[np.float64]

_RIGHT = np.array([1.0, 0.0, 0.0])
_ANTERIOR = np.array([0.0, 1.0, 0.0])
_SUPERIOR = np.array([0.0, 0.0, 1.0])

#: A planned path nearer than this to the patient's long axis takes the anterior axis as its roll lock.
LOCK_SWITCH_DEG = 25.0


@dataclass(frozen=True, slots=True, eq=False)
class PlaneAxes:
    """Unit axes of a picture in RAS: ``right`` and ``up`` on the screen; ``into`` points away from the viewer."""

    right: Vector
    up: Vector

    @property
    def into(self) -> Vector:
        """(3,) unit vector away from the viewer, ``up × right``."""
        return np.cross(self.up, self.right)


#: Radiological display: seen from the feet (axial), from the front (coronal), from the patient's left (sagittal).
AXIAL = PlaneAxes(-_RIGHT, _ANTERIOR)
CORONAL = PlaneAxes(-_RIGHT, _SUPERIOR)
SAGITTAL = PlaneAxes(-_ANTERIOR, _SUPERIOR)


def lock_axis_for(direction_ras: ArrayLike | None) -> Vector:
    """The patient axis that keeps "up" for needles along about ``direction_ras`` (the *planned* direction).

    Every rule that takes "up" from the needle direction alone must be singular somewhere on the sphere (hairy-ball
    theorem), and a rule that switches while the needle moves flips the picture. So the axis is chosen once, from the
    plan, which stands still: superior, or anterior when the plan lies within `LOCK_SWITCH_DEG` of the long axis.

    Parameters
    ----------
    direction_ras : (3,) or None
        Planned direction of advance; None (no plan): superior.
    """
    if direction_ras is None:
        return _SUPERIOR.copy()
    d = np.asarray(direction_ras, dtype=np.float64)
    length = float(np.linalg.norm(d))
    if length == 0.0 or abs(d[2]) / length < np.cos(np.deg2rad(LOCK_SWITCH_DEG)):
        return _SUPERIOR.copy()
    return _ANTERIOR.copy()


def needle_axes(direction_ras: ArrayLike, lock_axis: ArrayLike | None = None) -> tuple[PlaneAxes, PlaneAxes, PlaneAxes]:
    """Axes of the three needle views: along 0°, along 90°, probe's eye.

    The needle runs to the right in both views along it. With ``s`` the lock axis made perpendicular to the needle
    ``d``: along 0° has ``d × s`` up (for a needle in the axial plane and the superior lock this is the axial plane seen
    from the feet), along 90° and the probe's eye have ``s`` up; the probe's eye looks along ``d``. A function of the
    direction alone, continuous everywhere but at ``d`` parallel to the lock axis (see `lock_axis_for`).

    Parameters
    ----------
    direction_ras : (3,)
        Direction of advance, RAS, not zero.
    lock_axis : (3,) or None
        From `lock_axis_for`; None: superior.
    """
    d = np.asarray(direction_ras, dtype=np.float64)
    d = d / np.linalg.norm(d)
    lock = _SUPERIOR if lock_axis is None else np.asarray(lock_axis, dtype=np.float64)
    s = lock - d * float(d @ lock)
    length = float(np.linalg.norm(s))
    if length < 1e-9:  # exactly along the lock axis: any fixed choice is as good
        other = _ANTERIOR if abs(lock[2]) > 0.5 else _SUPERIOR
        s = other - d * float(d @ other)
        length = float(np.linalg.norm(s))
    s = s / length
    side = np.cross(d, s)
    return PlaneAxes(d, side), PlaneAxes(d, s), PlaneAxes(side, s)


def plane_matrix(
    axes: PlaneAxes, centre_ras: ArrayLike, width: int, height: int, mm_per_px: float
) -> NDArray[np.float64]:
    """``ras_from_pixel`` (4, 4) of a picture of ``width`` × ``height`` pixels whose middle shows ``centre_ras``."""
    m = np.eye(4)
    m[:3, 0] = axes.right * mm_per_px
    m[:3, 1] = -axes.up * mm_per_px
    m[:3, 2] = axes.into
    middle = m[:3, 0] * ((width - 1) / 2.0) + m[:3, 1] * ((height - 1) / 2.0)
    m[:3, 3] = np.asarray(centre_ras, dtype=np.float64) - middle
    return m


def pixel_from_ras(ras_from_pixel: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) inverse: RAS mm to (x px, y px, depth mm)."""
    return np.ascontiguousarray(np.linalg.inv(ras_from_pixel))


def pixel_to_ras(ras_from_pixel: NDArray[np.float64], x: float, y: float) -> NDArray[np.float64]:
    """(3,) RAS mm of a pane pixel."""
    return np.asarray(ras_from_pixel[:3, :3] @ (x, y, 0.0) + ras_from_pixel[:3, 3], dtype=np.float64)


def ras_to_pixel(pixel_from_ras: NDArray[np.float64], points_ras: ArrayLike) -> NDArray[np.float64]:
    """(…, 3) pane pixel x, y and depth mm (positive behind the plane) of RAS points, shape (3,) or (n, 3)."""
    p = np.asarray(points_ras, dtype=np.float64)
    return np.asarray(p @ pixel_from_ras[:3, :3].T + pixel_from_ras[:3, 3], dtype=np.float64)


def pane_letters(axes: PlaneAxes) -> dict[str, str]:
    """Orientation letters at the four edges: ``left``, ``right``, ``top``, ``bottom``."""
    return {
        "left": orientation_letters(-axes.right),
        "right": orientation_letters(axes.right),
        "top": orientation_letters(axes.up),
        "bottom": orientation_letters(-axes.up),
    }
