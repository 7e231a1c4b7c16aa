"""The result types of guidance: what the screen, the recording and the summary show."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

__all__ = ["GateReason", "GateState", "GateVerdict", "GuidanceNumbers", "TipUncertainty"]


@dataclass(frozen=True, slots=True, eq=False)
class GuidanceNumbers:
    """Needle against target and plan, RAS mm.

    Attributes
    ----------
    tip_ras, axis_ras : (3,) float64
        Needle tip, unit direction of advance.
    tip_to_target_mm : float
    lateral_mm : float
        Distance of the tip from the planned line.
    depth_mm : float
        Signed depth to go along the planned line: positive before the target, negative when past it.
    angle_deg : float
        Between needle axis and planned direction, 0 to 180.
    tip_to_surface_mm : float or None
        Signed distance of the tip to the tumour's surface, negative inside; None without a tumour.
    tip_offset_mm, hub_offset_mm : (2,) float64
        In the bull's-eye (plane normal to the planned path; axes: right, up as seen along the path): the tip, and
        where the needle's axis extended back crosses the plane of the planned entry.
    """

    tip_ras: NDArray[np.float64]
    axis_ras: NDArray[np.float64]
    tip_to_target_mm: float
    lateral_mm: float
    depth_mm: float
    angle_deg: float
    tip_to_surface_mm: float | None
    tip_offset_mm: NDArray[np.float64]
    hub_offset_mm: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TipUncertainty:
    """Uncertainty of the tip in RAS: (3, 3) covariance mm², its rms, the radius that holds 95 %, and the named parts.

    ``calibrated`` is False when a part rests on an assumption (an assumed registration, an unknown tip calibration).
    ``pose_covariance`` is (6, 6): of the tip (mm) and of a small rotation about it (rad), along the axes of RAS.
    """

    covariance_mm2: NDArray[np.float64]
    rms_mm: float
    radius95_mm: float
    parts_rms_mm: dict[str, float]
    calibrated: bool
    pose_covariance: NDArray[np.float64]


class GateState(Enum):
    """May the numbers be shown? Only ever tightened: OK → DEGRADED → BLANK."""

    OK = 0
    DEGRADED = 1
    BLANK = 2


@dataclass(frozen=True, slots=True)
class GateReason:
    """One reason. ``code`` is stable (``tool_lost:NeedleToTracker``); ``text`` is condition + action for the person."""

    code: str
    level: GateState
    text: str


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """State and every reason, worst first. OK has no reasons."""

    state: GateState
    reasons: tuple[GateReason, ...] = ()
