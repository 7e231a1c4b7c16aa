"""Guidance numbers with their signs, the bull's-eye, and the tip's uncertainty budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation
from tumour_phantoms import CENTRE, ball

from nav.ablation.tumour import TumourModel
from nav.config.room import UncertaintyConfig
from nav.geometry.rigid import Rigid
from nav.guidance.compute import MAX_HUB_OFFSET_MM, PlanError, bullseye_axes, compute_guidance
from nav.guidance.uncertainty import marker_covariance, stylus_touch_covariance, tip_uncertainty
from nav.registration.landmarks import LandmarkRegistration, register_landmarks

TARGET = np.array([10.0, 20.0, 30.0])
# The plan comes from the front (anterior), going straight back.
ENTRY = TARGET + np.array((0.0, 100.0, 0.0))
BACK = np.array([0.0, -1.0, 0.0])


def tip(at: ArrayLike, axis: ArrayLike, name: str = "NeedleTipToRas") -> Rigid:
    """A pose with +Z along ``axis``."""
    z = np.asarray(axis, dtype=np.float64)
    z = z / np.linalg.norm(z)
    x = np.cross([0.31, 0.22, 0.9], z)
    x = x / np.linalg.norm(x)
    m = np.eye(4)
    m[:3, 0], m[:3, 1], m[:3, 2], m[:3, 3] = x, np.cross(z, x), z, at
    return Rigid.from_matrix(m, name)


def test_on_the_plan_and_before_the_target() -> None:
    g = compute_guidance(tip(TARGET + np.array((0.0, 40.0, 0.0)), BACK), target_ras=TARGET, entry_ras=ENTRY)
    assert g.tip_to_target_mm == pytest.approx(40.0)
    assert g.depth_mm == pytest.approx(40.0)
    assert g.lateral_mm == pytest.approx(0.0, abs=1e-12)
    assert g.angle_deg == pytest.approx(0.0, abs=1e-9)
    assert g.tip_to_surface_mm is None
    np.testing.assert_allclose(g.tip_ras, TARGET + np.array((0.0, 40.0, 0.0)))
    np.testing.assert_allclose(g.axis_ras, BACK, atol=1e-12)
    np.testing.assert_allclose(g.tip_offset_mm, 0.0, atol=1e-12)
    np.testing.assert_allclose(g.hub_offset_mm, 0.0, atol=1e-12)


def test_past_the_target_depth_is_negative() -> None:
    g = compute_guidance(tip(TARGET - np.array((0.0, 2.0, 0.0)), BACK), target_ras=TARGET, entry_ras=ENTRY)
    assert g.depth_mm == pytest.approx(-2.0)
    assert g.tip_to_target_mm == pytest.approx(2.0)
    assert g.angle_deg == pytest.approx(0.0, abs=1e-9)


def test_offsets_in_the_bullseye_have_the_signs_of_the_view() -> None:
    """Looking from the front to the back with superior up, the patient's right lies on the viewer's left."""
    right, up = bullseye_axes(BACK)
    np.testing.assert_allclose(up, [0.0, 0.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(right, [-1.0, 0.0, 0.0], atol=1e-12)
    # 3 mm to the patient's right, 4 mm up.
    g = compute_guidance(tip(TARGET + np.array((3.0, 40.0, 4.0)), BACK), target_ras=TARGET, entry_ras=ENTRY)
    np.testing.assert_allclose(g.tip_offset_mm, [-3.0, 4.0], atol=1e-12)
    np.testing.assert_allclose(g.hub_offset_mm, [-3.0, 4.0], atol=1e-12)
    assert g.lateral_mm == pytest.approx(5.0)
    assert g.depth_mm == pytest.approx(40.0)


def test_hub_offset_is_where_the_axis_crosses_the_entry_plane() -> None:
    hub = ENTRY + np.array((6.0, 0.0, -8.0))
    g = compute_guidance(tip(TARGET, TARGET - hub), target_ras=TARGET, entry_ras=ENTRY)
    np.testing.assert_allclose(g.tip_offset_mm, 0.0, atol=1e-9)
    np.testing.assert_allclose(g.hub_offset_mm, [-6.0, -8.0], atol=1e-9)
    assert g.angle_deg == pytest.approx(math.degrees(math.atan2(10.0, 100.0)))


def test_a_needle_across_the_path_has_a_bounded_hub_offset() -> None:
    for axis in ((1.0, 0.0, 0.0), (1.0, 1e-9, 0.0), (1.0, -1e-9, 0.0)):
        g = compute_guidance(tip(TARGET, axis), target_ras=TARGET, entry_ras=ENTRY)
        assert np.isfinite(g.hub_offset_mm).all()
        assert np.hypot(*g.hub_offset_mm) <= MAX_HUB_OFFSET_MM * (1 + 1e-9)
        assert g.angle_deg == pytest.approx(90.0, abs=1e-5)


def test_a_needle_that_points_backwards_is_180_degrees_off() -> None:
    g = compute_guidance(tip(TARGET + np.array((0.0, 40.0, 0.0)), -BACK), target_ras=TARGET, entry_ras=ENTRY)
    assert g.angle_deg == pytest.approx(180.0)
    assert g.depth_mm == pytest.approx(40.0)


def test_without_entry_the_line_is_the_needle_axis() -> None:
    g = compute_guidance(tip(TARGET + np.array((5.0, 40.0, 0.0)), BACK), target_ras=TARGET)
    assert g.lateral_mm == pytest.approx(5.0)
    assert g.depth_mm == pytest.approx(40.0)
    assert g.angle_deg == pytest.approx(math.degrees(math.atan2(5.0, 40.0)))
    # Seen along the needle, its tip lies 5 mm to the patient's right of the target: left in the view.
    np.testing.assert_allclose(g.tip_offset_mm, [-5.0, 0.0], atol=1e-12)
    np.testing.assert_array_equal(g.hub_offset_mm, g.tip_offset_mm)
    on_target = compute_guidance(tip(TARGET, BACK), target_ras=TARGET)
    assert on_target.angle_deg == 0.0
    assert on_target.tip_to_target_mm == 0.0


def test_a_path_along_the_body_has_anterior_up() -> None:
    right, up = bullseye_axes([0.0, 0.0, 1.0])
    np.testing.assert_allclose(up, [0.0, 1.0, 0.0])
    np.testing.assert_allclose(right, np.cross([0, 0, 1], [0, 1, 0]))


def test_distance_to_the_tumour_is_negative_inside() -> None:
    model = TumourModel.from_mask(ball(10.0, (1.0, 1.0, 1.0)))
    for depth in (-6.0, 4.0, 40.0):
        pose = tip(CENTRE + np.array((0.0, 10.0 + depth, 0.0)), BACK)
        g = compute_guidance(pose, target_ras=CENTRE, tumour=model)
        assert g.tip_to_surface_mm == pytest.approx(depth, abs=0.25)


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(PlanError, match=r"0\.50 mm apart"):
        compute_guidance(tip(TARGET, BACK), target_ras=TARGET, entry_ras=TARGET + np.array((0.5, 0, 0)))
    with pytest.raises(PlanError, match="target"):
        compute_guidance(tip(TARGET, BACK), target_ras=[np.nan, 0, 0])
    with pytest.raises(PlanError, match="entry"):
        compute_guidance(tip(TARGET, BACK), target_ras=TARGET, entry_ras=[np.inf, 0, 0])


# ---------------------------------------------------------------------------------------------------- uncertainty


@pytest.fixture(scope="module")
def registration() -> LandmarkRegistration:
    points = np.array([(0, 0, 0), (120, 10, 5), (20, 140, -10), (100, 120, 40), (60, 60, 80)], dtype=np.float64)
    noise = np.random.default_rng(0).normal(scale=1.0 / math.sqrt(3.0), size=points.shape)
    return register_landmarks(points, points + noise, name="ReferenceToRas", labels="abcde")


QUIET = UncertaintyConfig(tracker_sigma_mm=0.0, tracker_sigma_deg=0.0, hand_speed_mm_s=0.0)


def test_marker_noise_turns_about_the_marker() -> None:
    c = marker_covariance([0.0, 0.0, 150.0], 0.15, 0.1)
    across = 0.15**2 + (150.0 * math.radians(0.1)) ** 2
    np.testing.assert_allclose(c, np.diag([across, across, 0.15**2]), atol=1e-15)


def test_marker_noise_agrees_with_monte_carlo() -> None:
    rng = np.random.default_rng(1)
    lever = np.array([20.0, -60.0, 140.0])
    turns = Rotation.from_rotvec(rng.normal(scale=math.radians(0.5), size=(40_000, 3)))
    points = turns.apply(lever) + rng.normal(scale=0.3, size=(40_000, 3))
    np.testing.assert_allclose(np.cov(points.T), marker_covariance(lever, 0.3, 0.5), atol=0.03)


def test_every_part_adds_its_variance(registration: LandmarkRegistration) -> None:
    pose = tip(TARGET, BACK)
    needle = tip(TARGET - 150.0 * BACK, BACK, "NeedleToRas")
    config = UncertaintyConfig(tip_calibration_rms_mm=0.5, hand_speed_mm_s=0.0)
    u = tip_uncertainty(
        ras_from_tip=pose,
        config=config,
        registration=registration,
        ras_from_needle=needle,
        ras_from_reference=registration.transform,
        speed_mm_s=10.0,
        latency_s=0.04,
    )
    parts = u.parts_rms_mm
    assert set(parts) == {"registration", "needle_tracking", "reference_tracking", "tip_calibration", "latency"}
    assert parts["registration"] == pytest.approx(registration.tre_rms_at(TARGET))
    assert parts["tip_calibration"] == pytest.approx(0.5)
    assert parts["latency"] == pytest.approx(0.4)
    assert parts["needle_tracking"] == pytest.approx(math.sqrt(3 * 0.15**2 + 2 * (150 * math.radians(0.1)) ** 2))
    assert u.rms_mm == pytest.approx(math.sqrt(sum(p * p for p in parts.values())))
    assert u.rms_mm == pytest.approx(math.sqrt(np.trace(u.covariance_mm2)))
    assert u.rms_mm < u.radius95_mm < 2.5 * u.rms_mm
    assert u.calibrated


def test_latency_is_along_the_needle() -> None:
    u = tip_uncertainty(ras_from_tip=tip(TARGET, BACK), config=QUIET, speed_mm_s=10.0, latency_s=0.05)
    np.testing.assert_allclose(u.covariance_mm2, np.diag([0.0, 0.25, 0.0]), atol=1e-12)
    still = tip_uncertainty(ras_from_tip=tip(TARGET, BACK), config=UncertaintyConfig(), latency_s=0.04)
    assert still.parts_rms_mm["latency"] == pytest.approx(math.sqrt(3.0) * 5.0 * 0.04)
    assert "latency" not in tip_uncertainty(ras_from_tip=tip(TARGET, BACK), config=UncertaintyConfig()).parts_rms_mm


def test_what_rests_on_an_assumption_is_not_calibrated(registration: LandmarkRegistration) -> None:
    pose = tip(TARGET, BACK)
    assert not tip_uncertainty(ras_from_tip=pose, config=QUIET).calibrated
    assert not tip_uncertainty(ras_from_tip=pose, config=QUIET, registration=registration, assumed=True).calibrated
    nominal = tip_uncertainty(ras_from_tip=pose, config=QUIET, registration=registration, tip_calibrated=False)
    assert not nominal.calibrated
    stated = tip_uncertainty(ras_from_tip=pose, config=QUIET, stated_registration_rms_mm=1.5)
    assert stated.calibrated
    assert stated.rms_mm == pytest.approx(1.5)


def test_nothing_known_to_be_wrong_is_zero_and_not_an_error() -> None:
    u = tip_uncertainty(ras_from_tip=tip(TARGET, BACK), config=QUIET)
    assert (u.rms_mm, u.radius95_mm) == (0.0, 0.0)


def test_radius_widens_with_few_landmarks(registration: LandmarkRegistration) -> None:
    """The same covariance with few residuals behind it reaches further."""
    from dataclasses import replace

    pose = tip(TARGET, BACK)
    known = tip_uncertainty(ras_from_tip=pose, config=QUIET, registration=replace(registration, dof=1e9))
    guess = tip_uncertainty(ras_from_tip=pose, config=QUIET, registration=replace(registration, dof=4.0))
    assert guess.rms_mm == pytest.approx(known.rms_mm)
    assert guess.radius95_mm > 1.2 * known.radius95_mm


def test_touch_covariance_shrinks_with_the_samples() -> None:
    at: NDArray[np.float64] = np.array([100.0, 0.0, 0.0])
    stylus_tip = tip(at, BACK, "StylusTipToReference")
    marker = tip(at - 140.0 * BACK, BACK, "StylusToReference")
    one = stylus_touch_covariance(stylus_tip, UncertaintyConfig(), reference_from_marker=marker)
    many = stylus_touch_covariance(stylus_tip, UncertaintyConfig(), reference_from_marker=marker, samples=15)
    np.testing.assert_allclose(one / 15.0, many)
    expected = 6 * 0.15**2 + 2 * math.radians(0.1) ** 2 * (100.0**2 + 140.0**2)
    assert np.trace(one) == pytest.approx(expected)
