"""Access paths: straight lines from an entry to the needle's tip, checked against every hard constraint.

A path is feasible only where that is certain on the grid: distances are lower bounds (`Grid.distance`), the bound of
`Grid.threshold_mm` covers what interpolation adds, and steps along the path are closed by the distance's Lipschitz
constant of 1. So a feasible path keeps its safety distance at every point, not only at samples. The price is that
paths which keep it by less than about a millimetre more than asked are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.planning import kernels
from nav.planning.anatomy import Anatomy
from nav.planning.grid import PlanningError
from nav.planning.kernels import FARTHEST_MM, STEP_MM

__all__ = ["CONSTRAINTS", "PathChecks", "PathLimits", "check_paths", "obstacle_distances_mm"]

Array = NDArray[np.float64]

#: Distance between samples along a path where something is near, mm.
_ADVANCE_MM = 0.5
#: The capsule's normal is the gradient of the blurred organ over this length each way, mm.
_NORMAL_MM = 1.5
#: Once a path may touch the organ, its depth may fall back by so much (the steps of voxels) before it is in, mm.
_GRAZE_MM = 0.1
#: The capsule's angle must be this much better than asked, degrees: a normal to a voxelised surface is a matter of
#: smoothing (measured against normals of the blurred mask, docs/planning.md).
_ANGLE_RESERVE_DEG = 4.0

#: Hard constraints besides the structures to avoid, by the name under which they are violated.
CONSTRAINTS = {
    "reaches_organ": "starts outside the organ and enters it",
    "stays_in_organ": "does not leave the organ again before the tip",
    "length": "is no longer than the needle",
    "parenchyma": "has enough organ before the target",
    "capsule_angle": "crosses the capsule steeply enough",
    "out_of_plane": "stays near the scan plane",
    "from_below": "does not come from below",
    "pose_angle": "stays near the axis of the given pose",
}


@dataclass(frozen=True, slots=True)
class PathLimits:
    """Hard constraints. None: not asked for.

    Attributes
    ----------
    needle_length_mm : usable length from the skin to the tip
    parenchyma_mm : organ before the target
    capsule_angle_deg : between path and capsule, 90 is across it
    out_of_plane_deg : from the scan plane, tilted by ``gantry_tilt_deg`` about the left-right axis
        (positive: its front edge towards the feet)
    up_ras, from_below_deg : a path may rise against gravity by at most this angle; ``up_ras`` points off the table
    pose_angle_deg : from the axis of the entry's pose
    """

    needle_length_mm: float = 150.0
    parenchyma_mm: float = 5.0
    capsule_angle_deg: float = 20.0
    out_of_plane_deg: float | None = None
    gantry_tilt_deg: float = 0.0
    up_ras: tuple[float, float, float] | None = None
    from_below_deg: float = 15.0
    pose_angle_deg: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PathChecks:
    """Paths and what they violate; n paths, c constraints (structures first, then `CONSTRAINTS`).

    Attributes
    ----------
    entries_ras, tips_ras : (n, 3) float64
    constraints : names, (c)
    violated : (n, c) bool
    length_mm, capsule_mm, parenchyma_mm, capsule_angle_deg, out_of_plane_deg : (n,) float64
        Capsule: where on the path, from the entry; parenchyma: certain length in the organ before the target. NaN
        where the path does not reach the organ.
    """

    entries_ras: Array
    tips_ras: Array
    constraints: tuple[str, ...]
    violated: NDArray[np.bool_]
    length_mm: Array
    capsule_mm: Array
    parenchyma_mm: Array
    capsule_angle_deg: Array
    out_of_plane_deg: Array

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """(n,)"""
        return np.asarray(~self.violated.any(axis=1))

    @property
    def counts(self) -> dict[str, int]:
        """How many paths violate each constraint."""
        return dict(zip(self.constraints, (int(c) for c in self.violated.sum(axis=0)), strict=True))

    def take(self, index: ArrayLike) -> PathChecks:
        """Some of the paths."""
        i = np.asarray(index)
        return PathChecks(
            self.entries_ras[i], self.tips_ras[i], self.constraints, self.violated[i], self.length_mm[i],
            self.capsule_mm[i], self.parenchyma_mm[i], self.capsule_angle_deg[i], self.out_of_plane_deg[i],
        )  # fmt: skip


def check_paths(
    anatomy: Anatomy,
    entries_ras: ArrayLike,
    tips_ras: ArrayLike,
    limits: PathLimits,
    pose_axes_ras: ArrayLike | None = None,
) -> PathChecks:
    """Check n paths from entry to tip.

    Parameters
    ----------
    entries_ras, tips_ras : (n, 3) RAS mm
        In the box that the anatomy was built around.
    pose_axes_ras : (n, 3) unit vectors, optional
        Direction of the given pose; NaN where there is none.

    Raises
    ------
    PlanningError
        Limits that cannot be, or points outside the anatomy's box.
    """
    _check_limits(limits)
    grid = anatomy.grid
    entries = np.ascontiguousarray(np.atleast_2d(np.asarray(entries_ras, np.float64)))
    tips = np.ascontiguousarray(np.atleast_2d(np.asarray(tips_ras, np.float64)))
    if entries.shape != tips.shape or entries.shape[1:] != (3,):
        raise PlanningError(f"entries have shape {entries.shape}, tips {tips.shape}; both must be (n, 3)")
    local_entries, local_tips = grid.local_mm(entries), grid.local_mm(tips)
    room = (np.array(grid.shape[::-1]) - 0.5) * grid.pitch_mm
    for what, points in (("entry", local_entries), ("tip", local_tips)):
        wrong = ~((points >= -0.5 * grid.pitch_mm) & (points <= room)).all(axis=1)
        if wrong.any():
            raise PlanningError(
                f"{what} {int(np.argmax(wrong))} lies outside the anatomy that was read, or is not finite"
            )
    count = len(anatomy.names)
    base = count
    names = (*anatomy.names, *CONSTRAINTS)
    hit = np.zeros((len(entries), count + 2), np.uint8)
    places = np.empty((len(entries), 3), np.float32)
    half = grid.half_diagonal_mm
    clearances = np.array(anatomy.clearance_mm, np.float64)
    needed = np.array([grid.threshold_mm(c + 0.5 * _ADVANCE_MM) for c in clearances]) / STEP_MM
    reserve = (clearances + half) / STEP_MM
    kernels._check(
        local_entries, local_tips, anatomy.obstacles, _fixed(needed), _fixed(reserve),
        _fixed_bytes(anatomy.through), anatomy.organ, anatomy.tumour, grid.threshold_mm(0.5 * _ADVANCE_MM) / STEP_MM,
        _fixed(1.0 / grid.pitch_mm), _fixed(np.array([STEP_MM, _ADVANCE_MM, _NORMAL_MM, _GRAZE_MM])), hit, places,
    )  # fmt: skip
    vector = tips - entries
    length = np.linalg.norm(vector, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        direction = vector / length[:, None]
    capsule, parenchyma, sine = (places[:, c].astype(np.float64) for c in range(3))
    angle = np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0)))
    tilt = math.radians(limits.gantry_tilt_deg)
    plane_normal = np.array([0.0, math.sin(tilt), math.cos(tilt)])
    out_of_plane = np.degrees(np.arcsin(np.clip(direction @ plane_normal, -1.0, 1.0)))
    violated = np.zeros((len(entries), len(names)), bool)
    violated[:, : base + 2] = hit > 0
    reached = hit[:, base] == 0
    violated[:, base + 2] = ~(length <= limits.needle_length_mm)
    violated[:, base + 3] = reached & ~(parenchyma >= limits.parenchyma_mm)
    violated[:, base + 4] = reached & ~(angle >= limits.capsule_angle_deg + _ANGLE_RESERVE_DEG)
    if limits.out_of_plane_deg is not None:
        violated[:, base + 5] = ~(np.abs(out_of_plane) <= limits.out_of_plane_deg)
    if limits.up_ras is not None:
        up = np.asarray(limits.up_ras, np.float64) / float(np.linalg.norm(limits.up_ras))
        violated[:, base + 6] = ~(direction @ up <= math.sin(math.radians(limits.from_below_deg)))
    if limits.pose_angle_deg is not None and pose_axes_ras is not None:
        axes = np.asarray(pose_axes_ras, np.float64)
        given = np.asarray(np.isfinite(axes).all(axis=1))
        cosine = np.einsum("ij,ij->i", direction, np.where(given[:, None], axes, 0.0))
        violated[:, base + 7] = given & ~(cosine >= math.cos(math.radians(limits.pose_angle_deg)))
    return PathChecks(entries, tips, names, violated, length, capsule, parenchyma, angle, out_of_plane)


def obstacle_distances_mm(anatomy: Anatomy, entries_ras: ArrayLike, tips_ras: ArrayLike) -> Array:
    """(n, s) lower bounds of the smallest distance to every structure (up to `FARTHEST_MM`), less half a cell's
    diagonal at most; where a structure passes through the target, to the rest of it."""
    grid = anatomy.grid
    entries, tips = grid.local_mm(entries_ras), grid.local_mm(tips_ras)
    out = np.empty((len(entries), len(anatomy.names)), np.float32)
    kernels._nearest(entries, tips, anatomy.obstacles, _ADVANCE_MM, _fixed(1.0 / grid.pitch_mm), out)
    # Values at which a point is sure to be this far away, inverted by interpolation.
    known = np.linspace(0.0, FARTHEST_MM, 401)
    needed = np.array([grid.threshold_mm(d + 0.5 * _ADVANCE_MM) for d in known])
    value = out.astype(np.float64) * STEP_MM
    return np.where(value >= FARTHEST_MM - 1.5 * STEP_MM, FARTHEST_MM, np.interp(value, needed, known, left=0.0))


def _check_limits(limits: PathLimits) -> None:
    for name, low, high in (
        ("needle_length_mm", 10.0, 500.0),
        ("parenchyma_mm", 0.0, 100.0),
        ("capsule_angle_deg", 0.0, 80.0),
        ("out_of_plane_deg", 0.0, 90.0),
        ("gantry_tilt_deg", -45.0, 45.0),
        ("from_below_deg", -90.0, 90.0),
        ("pose_angle_deg", 0.0, 180.0),
    ):
        value = getattr(limits, name)
        if value is not None and not low <= value <= high:
            raise PlanningError(f"{name} is {value:g}, must lie between {low:g} and {high:g}")


def _fixed(array: ArrayLike) -> Array:
    out = np.ascontiguousarray(array, np.float64).copy()
    out.setflags(write=False)
    return out


def _fixed_bytes(array: NDArray[np.bool_]) -> NDArray[np.uint8]:
    out = array.astype(np.uint8)
    out.setflags(write=False)
    return out
