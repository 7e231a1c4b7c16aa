"""From a needle pose and a plan to the numbers a person acts on. Signs and definitions: ``docs/guidance.md``."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.ablation.tumour import TumourModel
from nav.geometry.rigid import Rigid
from nav.guidance.numbers import GuidanceNumbers

__all__ = ["PlanError", "bullseye_axes", "compute_guidance"]

Array = NDArray[np.float64]

#: Entry and target closer than this define no direction.
MIN_PATH_MM = 1.0
#: The hub offset is cut here: a needle across the planned path crosses its entry plane nowhere near.
MAX_HUB_OFFSET_MM = 1000.0


class PlanError(ValueError):
    """A plan that cannot guide; the message names what is wrong."""


def bullseye_axes(direction: ArrayLike) -> tuple[Array, Array]:
    """Right and up of the view along ``direction``, locked to the patient.

    Up is the patient's superior direction as far as it lies across ``direction``; for paths within 25° of the
    head-feet axis it is anterior. Right = direction × up, as a person who looks along the path sees it.

    Parameters
    ----------
    direction : (3,) float64
        RAS, unit.

    Returns
    -------
    right, up : (3,) float64
        Unit vectors, RAS.
    """
    d = np.asarray(direction, dtype=np.float64)
    reference = np.array([0.0, 0.0, 1.0]) if abs(d[2]) < math.cos(math.radians(25.0)) else np.array([0.0, 1.0, 0.0])
    up = reference - (reference @ d) * d
    up = up / np.linalg.norm(up)
    return np.cross(d, up), up


def _angle_deg(a: Array, b: Array) -> float:
    """Angle between two vectors, 0 to 180, stable near both ends."""
    return math.degrees(math.atan2(float(np.linalg.norm(np.cross(a, b))), float(a @ b)))


def _frozen(values: list[float]) -> Array:
    out = np.array(values, dtype=np.float64)
    out.setflags(write=False)
    return out


def compute_guidance(
    ras_from_tip: Rigid,
    *,
    target_ras: ArrayLike,
    entry_ras: ArrayLike | None = None,
    tumour: TumourModel | None = None,
) -> GuidanceNumbers:
    """Needle against target, planned line and tumour.

    Parameters
    ----------
    ras_from_tip : Rigid
        Needle tip in RAS mm; +Z of the tip frame is the direction of advance.
    target_ras : (3,) float64
    entry_ras : (3,) float64, optional
        With it, the planned line runs from entry to target. Without it there is no planned direction, and the line is
        the needle's own axis: ``lateral_mm`` is then how far the target lies off that axis, ``depth_mm`` how far to
        advance until level with the target, and ``angle_deg`` the angle between the axis and the direction to the
        target (0 when the tip is on the target).
    tumour : TumourModel, optional

    Raises
    ------
    PlanError
        Entry and target coincide, or a point is not finite.
    """
    tip = np.array(ras_from_tip.translation)
    axis = np.array(ras_from_tip.rotation[:, 2])
    target = np.array(target_ras, dtype=np.float64)
    if target.shape != (3,) or not np.isfinite(target).all():
        raise PlanError(f"target {target.tolist()} is not a finite point; set the target again")
    to_target = target - tip
    distance = float(np.linalg.norm(to_target))
    if entry_ras is None:
        direction = axis
        angle = _angle_deg(axis, to_target) if distance > 0.0 else 0.0
    else:
        entry = np.array(entry_ras, dtype=np.float64)
        if entry.shape != (3,) or not np.isfinite(entry).all():
            raise PlanError(f"entry {entry.tolist()} is not a finite point; set the entry again")
        path = target - entry
        length = float(np.linalg.norm(path))
        if length < MIN_PATH_MM:
            raise PlanError(
                f"entry and target lie {length:.2f} mm apart, at least {MIN_PATH_MM:g} mm are needed; "
                "set the entry again"
            )
        direction = path / length
        angle = _angle_deg(axis, direction)

    depth = float(to_target @ direction)
    across = -(to_target - depth * direction)
    right, up = bullseye_axes(direction)
    tip_offset = [float(across @ right), float(across @ up)]
    hub_offset = tip_offset
    if entry_ras is not None:
        slope = float(axis @ direction)
        level = float((entry - tip) @ direction)
        if slope == 0.0:
            slope = 1e-12
        crossing = tip + (level / slope) * axis - entry
        hub_offset = [float(crossing @ right), float(crossing @ up)]
        size = math.hypot(*hub_offset)
        if size > MAX_HUB_OFFSET_MM:
            hub_offset = [v * MAX_HUB_OFFSET_MM / size for v in hub_offset]
    for array in (tip, axis):
        array.setflags(write=False)
    return GuidanceNumbers(
        tip_ras=tip,
        axis_ras=axis,
        tip_to_target_mm=distance,
        lateral_mm=float(np.linalg.norm(across)),
        depth_mm=depth,
        angle_deg=angle,
        tip_to_surface_mm=None if tumour is None else tumour.signed_distance_mm(tip),
        tip_offset_mm=_frozen(tip_offset),
        hub_offset_mm=_frozen(hub_offset),
    )
