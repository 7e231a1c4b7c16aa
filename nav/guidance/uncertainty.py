"""How far the tip may be from where it is shown: every part of the budget, summed as covariances in RAS."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.config.room import UncertaintyConfig
from nav.geometry.rigid import Rigid
from nav.guidance.numbers import TipUncertainty
from nav.registration.error_distribution import effective_dof, radius_of_share
from nav.registration.landmarks import LandmarkRegistration, moved_covariance

__all__ = ["marker_covariance", "stylus_touch_covariance", "tip_uncertainty"]

Array = NDArray[np.float64]


def marker_covariance(lever_mm: ArrayLike, sigma_mm: float, sigma_deg: float) -> Array:
    """Covariance of a point fixed to a tracked marker, from the marker's own noise.

    Parameters
    ----------
    lever_mm : (3,) float64
        From the marker's origin to the point, mm, in the frame of the answer.
    sigma_mm, sigma_deg : float
        Standard deviation of the marker's position and orientation, each per axis.

    Returns
    -------
    (3, 3) float64, mm²
        ``σ_t² I + σ_r² (|L|² I − L Lᵀ)``: a small rotation moves the point across its lever arm only.
    """
    lever = np.asarray(lever_mm, dtype=np.float64)
    sigma_rad = math.radians(sigma_deg)
    eye = np.eye(3)
    return np.asarray(sigma_mm**2 * eye + sigma_rad**2 * (float(lever @ lever) * eye - np.outer(lever, lever)))


def stylus_touch_covariance(
    reference_from_tip: Rigid,
    config: UncertaintyConfig,
    *,
    reference_from_marker: Rigid | None = None,
    samples: int = 1,
) -> Array:
    """(3, 3) covariance in the Reference frame of a stylus tip averaged over ``samples`` independent reports.

    For ``moving_covariances`` of `nav.registration.landmarks.register_landmarks`: the noise of the stylus marker
    (lever arm from the marker to the tip) and of the reference marker (lever arm from its origin to the tip).
    """
    tip = reference_from_tip.translation
    lever = np.zeros(3) if reference_from_marker is None else tip - reference_from_marker.translation
    noise = marker_covariance(lever, config.tracker_sigma_mm, config.tracker_sigma_deg) + marker_covariance(
        tip, config.tracker_sigma_mm, config.tracker_sigma_deg
    )
    return np.asarray(noise / max(samples, 1))


def tip_uncertainty(
    *,
    ras_from_tip: Rigid,
    config: UncertaintyConfig,
    registration: LandmarkRegistration | None = None,
    assumed: bool = False,
    stated_registration_rms_mm: float | None = None,
    ras_from_needle: Rigid | None = None,
    ras_from_reference: Rigid | None = None,
    tip_calibrated: bool = True,
    tip_calibration_rms_mm: float | None = None,
    speed_mm_s: float = 0.0,
    latency_s: float = 0.0,
) -> TipUncertainty:
    """Uncertainty of the needle tip in RAS at this moment.

    Parameters
    ----------
    ras_from_tip : Rigid
        The tip as shown.
    config : UncertaintyConfig
        Tracker noise and tip calibration error as stated for the room.
    registration : LandmarkRegistration, optional
        Gives the TRE at the tip. None for a registration from a file or an assumed one.
    assumed : bool
        The registration is an assumption: the result is not calibrated, whatever else is known.
    stated_registration_rms_mm : float, optional
        3-D rms error that a file or the configuration states for a registration without landmarks.
    ras_from_needle : Rigid, optional
        Pose of the needle's marker (its origin gives the lever arm to the tip). None when the tracker reports the tip
        itself: no lever arm.
    ras_from_reference : Rigid, optional
        Pose of the reference marker (lever arm to the tip). None when no separate reference is tracked: no part.
    tip_calibrated : bool
        False when the tip calibration is nominal or assumed.
    tip_calibration_rms_mm : float, optional
        3-D rms error of the tip calibration; the room's ``tip_calibration_rms_mm`` when omitted.
    speed_mm_s, latency_s : float
        The tip moves on while its pose travels: ``speed × latency`` along the needle's axis, taken in full as one
        standard deviation, because it is an offset and not noise; and in every direction the room's
        ``hand_speed_mm_s × latency``, because no hand holds still. With a latency of 0 the result is the uncertainty
        of the tip at the pose's own time.

    Returns
    -------
    TipUncertainty
        ``radius95_mm`` follows the exact distribution of a 3-D error with this covariance, widened (multivariate t)
        because the registration's part rests on few residuals; degrees of freedom after Welch and Satterthwaite.
    """
    tip = ras_from_tip.translation
    parts: dict[str, Array] = {}
    dof_parts: list[tuple[float, float]] = []
    calibrated = not assumed and tip_calibrated
    if registration is not None:
        parts["registration"] = moved_covariance(registration.covariance, -tip)
        dof_parts.append((float(np.trace(parts["registration"][:3, :3])), registration.dof))
    elif stated_registration_rms_mm is not None:
        parts["registration"] = _shift_only(np.eye(3) * stated_registration_rms_mm**2 / 3.0)
    else:
        calibrated = False
    noise = np.diag([config.tracker_sigma_mm**2] * 3 + [math.radians(config.tracker_sigma_deg) ** 2] * 3)
    lever = np.zeros(3) if ras_from_needle is None else tip - ras_from_needle.translation
    parts["needle_tracking"] = moved_covariance(noise, -lever)
    if ras_from_reference is not None:
        parts["reference_tracking"] = moved_covariance(noise, ras_from_reference.translation - tip)
    tip_rms = config.tip_calibration_rms_mm if tip_calibration_rms_mm is None else tip_calibration_rms_mm
    if tip_rms > 0.0:
        parts["tip_calibration"] = _shift_only(np.eye(3) * tip_rms**2 / 3.0)
    travel_s = max(latency_s, 0.0)
    if travel_s > 0.0:
        axis = ras_from_tip.rotation[:, 2]
        shift, tremor = abs(speed_mm_s) * travel_s, config.hand_speed_mm_s * travel_s
        parts["latency"] = _shift_only(shift**2 * np.outer(axis, axis) + tremor**2 * np.eye(3))

    pose = np.asarray(sum(parts.values(), np.zeros((6, 6))))
    covariance = pose[:3, :3].copy()
    trace = float(np.trace(covariance))
    radius = radius_of_share(covariance, 0.95, effective_dof(trace, dof_parts)) if trace > 0.0 else 0.0
    for array in (covariance, pose):
        array.setflags(write=False)
    return TipUncertainty(
        covariance_mm2=covariance,
        rms_mm=math.sqrt(trace),
        radius95_mm=radius,
        parts_rms_mm={name: math.sqrt(float(np.trace(part[:3, :3]))) for name, part in parts.items()},
        calibrated=calibrated,
        pose_covariance=pose,
    )


def _shift_only(covariance_mm2: Array) -> Array:
    """(6, 6) covariance of an error that shifts and does not turn."""
    out = np.zeros((6, 6))
    out[:3, :3] = covariance_mm2
    return out
