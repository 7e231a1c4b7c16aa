"""Landmark registration: the fit, its error prediction against the published formulas and Monte Carlo, its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from nav.geometry.frames import TransformName
from nav.geometry.rigid import rotation_angle_rad
from nav.registration.error_distribution import effective_dof, error_share_within, radius_of_share
from nav.registration.landmarks import (
    RegistrationError,
    fitzpatrick_tre_rms_mm,
    landmark_covariance,
    point_covariance,
    register_landmarks,
)

# The reference test set: five landmarks and a target, mm.
LANDMARKS = np.array([(0, 0, 0), (120, 10, 5), (20, 140, -10), (100, 120, 40), (60, 60, 80)], dtype=np.float64)
TARGET = np.array([60.0, 70.0, -90.0])
LABELS = ("a", "b", "c", "d", "e")
NAME = "ReferenceToRas"
ROTATION = Rotation.from_rotvec([0.4, -0.9, 0.3]).as_matrix()
SHIFT = np.array([120.0, -40.0, 300.0])


def moved(points: np.ndarray) -> np.ndarray:
    """The landmarks in the moving frame: RAS = ROTATION moving + SHIFT."""
    return (points - SHIFT) @ ROTATION


def test_exact_landmarks_give_the_exact_transform() -> None:
    result = register_landmarks(LANDMARKS, moved(LANDMARKS), name=NAME, labels=LABELS)
    assert result.transform.name == TransformName("Reference", "Ras")
    np.testing.assert_allclose(result.transform.rotation, ROTATION, atol=1e-12)
    np.testing.assert_allclose(result.transform.translation, SHIFT, atol=1e-9)
    assert result.fre_rms_mm < 1e-9
    assert result.order_warning is None


def test_planar_landmarks_give_a_rotation_and_not_a_reflection() -> None:
    planar = LANDMARKS * (1.0, 1.0, 0.0)
    noise = np.random.default_rng(3).normal(size=planar.shape)
    result = register_landmarks(planar, moved(planar) + noise, name=NAME, labels=LABELS)
    assert np.linalg.det(result.transform.rotation) == pytest.approx(1.0)
    assert rotation_angle_rad(result.transform.rotation @ ROTATION.T) < 0.05


def test_isotropic_tre_agrees_with_the_reference_value_in_both_forms() -> None:
    assert fitzpatrick_tre_rms_mm(LANDMARKS, 1.0, TARGET) == pytest.approx(0.81856, abs=5e-6)
    covariance = point_covariance(landmark_covariance(LANDMARKS, np.eye(3) / 3.0), TARGET)
    assert math.sqrt(np.trace(covariance)) == pytest.approx(0.81856, abs=5e-6)


def test_anisotropic_tre_agrees_with_the_reference_value() -> None:
    covariance = point_covariance(landmark_covariance(LANDMARKS, np.diag([0.3, 0.3, 1.2]) ** 2), TARGET)
    np.testing.assert_allclose(np.diag(covariance), [0.80426, 0.68285, 0.28883], atol=5e-6)
    assert math.sqrt(np.trace(covariance)) == pytest.approx(1.33264, abs=5e-6)


def test_covariance_of_the_weighted_fit_agrees_with_monte_carlo() -> None:
    rng = np.random.default_rng(11)
    roots = [np.diag(d) for d in ([0.3, 0.3, 1.2], [1.0, 0.2, 0.2], [0.5] * 3, [0.2, 1.5, 0.4], [0.3] * 3)]
    covariances = np.array([r @ r.T for r in roots])
    moving = moved(LANDMARKS)
    errors = []
    for _ in range(1200):
        noise = np.array([r @ rng.normal(size=3) for r in roots])
        result = register_landmarks(
            LANDMARKS, moving + noise, name=NAME, labels=LABELS, moving_covariances=covariances, prior_rms_mm=1e-3
        )
        errors.append(result.transform.apply(moved(TARGET)) - TARGET)
    measured = np.cov(np.array(errors).T)
    # The covariances were given in the moving frame; the prediction is in RAS and knows the true scale here.
    w = 3.0 / np.trace(covariances, axis1=1, axis2=2)
    predicted = point_covariance(landmark_covariance(LANDMARKS, ROTATION @ covariances @ ROTATION.T, w), TARGET)
    assert np.abs(measured - predicted).max() < 0.1 * np.trace(predicted)


def test_weights_move_the_fit_towards_the_better_landmarks() -> None:
    bad = moved(LANDMARKS)
    bad[4] += (0.0, 0.0, 20.0)
    equal = register_landmarks(LANDMARKS, bad, name=NAME, labels=LABELS, weights=np.ones(5))
    weighted = register_landmarks(LANDMARKS, bad, name=NAME, labels=LABELS, weights=[1, 1, 1, 1, 1e-6])
    assert np.linalg.norm(equal.transform.apply(moved(TARGET)) - TARGET) > 3.0
    np.testing.assert_allclose(weighted.transform.apply(moved(TARGET)), TARGET, atol=1e-3)


def test_excluded_landmark_keeps_its_residual_and_does_not_pull() -> None:
    bad = moved(LANDMARKS)
    bad[1] += 30.0
    result = register_landmarks(LANDMARKS, bad, name=NAME, labels=LABELS, used=[True, False, True, True, True])
    assert result.residuals_mm[1] == pytest.approx(30.0 * math.sqrt(3.0))
    assert result.fre_rms_mm < 1e-9
    assert not result.used[1]
    assert result.weights[1] == 0.0


def test_fle_joins_prior_and_residuals() -> None:
    rng = np.random.default_rng(5)
    points = rng.uniform(-100, 100, (12, 3))
    labels = [f"p{i}" for i in range(12)]
    noisy = points + rng.normal(scale=2.0 / math.sqrt(3.0), size=points.shape)
    trusting = register_landmarks(points, noisy, name=NAME, labels=labels, prior_rms_mm=1.0, prior_dof=1e6)
    doubting = register_landmarks(points, noisy, name=NAME, labels=labels, prior_rms_mm=1.0, prior_dof=1e-3)
    assert trusting.fle_rms_mm == pytest.approx(1.0, abs=1e-3)
    # FLE² = FRE² / (1 − 2/N), Fitzpatrick
    assert doubting.fle_rms_mm == pytest.approx(doubting.fre_rms_mm / math.sqrt(1.0 - 2.0 / 12.0), rel=1e-3)
    between = register_landmarks(points, noisy, name=NAME, labels=labels, prior_rms_mm=1.0)
    assert trusting.fle_rms_mm < between.fle_rms_mm < doubting.fle_rms_mm
    assert between.dof == pytest.approx(6.0 + 30.0)


def test_tre_is_smallest_at_the_middle_and_radius_exceeds_rms() -> None:
    noisy = moved(LANDMARKS) + np.random.default_rng(2).normal(scale=0.5, size=LANDMARKS.shape)
    result = register_landmarks(LANDMARKS, noisy, name=NAME, labels=LABELS)
    middle = LANDMARKS.mean(axis=0)
    assert result.tre_rms_at(middle) < result.tre_rms_at(TARGET) < result.tre_rms_at(TARGET * 5.0)
    assert result.tre_rms_at(TARGET) < result.radius95_at(TARGET) < 2.5 * result.tre_rms_at(TARGET)


@pytest.mark.parametrize("swap", [(0, 1), (1, 3), (2, 4)])
def test_swapped_landmarks_are_named(swap: tuple[int, int]) -> None:
    noisy = moved(LANDMARKS) + np.random.default_rng(7).normal(scale=0.6, size=LANDMARKS.shape)
    order = list(range(5))
    order[swap[0]], order[swap[1]] = swap[1], swap[0]
    result = register_landmarks(LANDMARKS, noisy[order], name=NAME, labels=LABELS)
    assert result.order_warning is not None
    assert result.order_warning.kind == "swapped"
    given = {LABELS[swap[0]]: LABELS[swap[1]], LABELS[swap[1]]: LABELS[swap[0]]}
    assert dict(result.order_warning.touched_as) == given
    assert f"{LABELS[swap[0]]} is probably {LABELS[swap[1]]}" in result.order_warning.text


def test_a_reversed_order_of_all_landmarks_is_found() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-100, 100, (8, 3))
    labels = [f"p{i}" for i in range(8)]
    result = register_landmarks(points, moved(points)[::-1], name=NAME, labels=labels)
    assert result.order_warning is not None
    assert dict(result.order_warning.touched_as) == {f"p{i}": f"p{7 - i}" for i in range(8)}


def test_a_mirrored_axis_is_named() -> None:
    result = register_landmarks(LANDMARKS, LANDMARKS * (1, 1, -1), name=NAME, labels=LABELS)
    assert result.order_warning is not None
    assert result.order_warning.kind == "mirrored"


def test_a_large_picking_error_alone_is_no_order_warning() -> None:
    rng = np.random.default_rng(13)
    for _ in range(30):
        noisy = moved(LANDMARKS) + rng.normal(scale=4.0, size=LANDMARKS.shape)
        assert register_landmarks(LANDMARKS, noisy, name=NAME, labels=LABELS).order_warning is None


def test_a_symmetric_set_is_called_ambiguous() -> None:
    square = np.array([(0, 0, 0), (100, 0, 0), (100, 100, 0), (0, 100, 0)], dtype=np.float64)
    assert register_landmarks(square, square, name=NAME, labels=LABELS[:4]).order_ambiguous
    assert not register_landmarks(LANDMARKS, LANDMARKS, name=NAME, labels=LABELS).order_ambiguous


@pytest.mark.parametrize(
    ("fixed", "used", "words"),
    [
        (LANDMARKS, [True, True, False, False, False], ["2 landmarks", "at least 3"]),
        (np.outer(np.arange(5.0), [30.0, 10.0, 0.0]), None, ["on a line", "0.00 mm", "5 mm"]),
        ([*LANDMARKS[:4], LANDMARKS[3] + (0.2, 0.0, 0.0)], None, ["d and e", "0.20 mm", "1 mm"]),
        (np.where(np.arange(5)[:, None] == 2, np.nan, LANDMARKS), None, ["c is not finite"]),
    ],
)
def test_refusals_say_what_is_wrong(fixed: np.ndarray, used: list[bool] | None, words: list[str]) -> None:
    fixed = np.array(fixed, dtype=np.float64)
    with pytest.raises(RegistrationError) as error:
        register_landmarks(fixed, fixed, name=NAME, labels=LABELS, used=used)
    for word in words:
        assert word in str(error.value)


def test_collinear_moving_points_are_refused_though_the_fixed_ones_are_fine() -> None:
    line = np.outer(np.arange(5.0), [30.0, 10.0, 0.0])
    with pytest.raises(RegistrationError, match="moving landmarks lie on a line"):
        register_landmarks(LANDMARKS, line, name=NAME, labels=LABELS)


def test_wrong_shapes_and_weights_are_refused() -> None:
    with pytest.raises(RegistrationError, match=r"shape \(4, 3\), expected \(5, 3\)"):
        register_landmarks(LANDMARKS[:4], LANDMARKS, name=NAME, labels=LABELS)
    with pytest.raises(RegistrationError, match="b = -1"):
        register_landmarks(LANDMARKS, LANDMARKS, name=NAME, labels=LABELS, weights=[1, -1, 1, 1, 1])
    with pytest.raises(RegistrationError, match="moving_covariances"):
        register_landmarks(LANDMARKS, LANDMARKS, name=NAME, labels=LABELS, moving_covariances=np.eye(3))
    with pytest.raises(RegistrationError, match="prior_rms_mm 0"):
        register_landmarks(LANDMARKS, LANDMARKS, name=NAME, labels=LABELS, prior_rms_mm=0.0)


def test_results_are_read_only() -> None:
    result = register_landmarks(LANDMARKS, LANDMARKS, name=NAME, labels=LABELS)
    for array in (result.residuals_mm, result.used, result.weights, result.covariance):
        assert not array.flags.writeable


def test_radius_of_known_normal_distributions() -> None:
    for axes, dof in (([4.0, 4.0, 4.0], 3), ([4.0, 4.0, 0.0], 2), ([0.0, 4.0, 0.0], 1)):
        expected = 2.0 * math.sqrt(chi2.ppf(0.95, dof))
        assert radius_of_share(np.diag(axes)) == pytest.approx(expected, rel=1e-4)
    assert radius_of_share(np.zeros((3, 3))) == 0.0


@pytest.mark.parametrize("dof", [3.0, 10.0, math.inf])
@pytest.mark.parametrize("axes", [[1.0, 0.3, 0.1], [1.0, 0.9, 0.01], [1.0, 1e-3, 1e-4]])
def test_radius_of_mixtures_agrees_with_monte_carlo(axes: list[float], dof: float) -> None:
    rng = np.random.default_rng(0)
    turn = Rotation.from_rotvec([1.0, 0.2, -0.5]).as_matrix()
    z = rng.normal(size=(400_000, 3)) * np.sqrt(axes)
    scale = 1.0 if math.isinf(dof) else dof / rng.chisquare(dof, len(z))
    lengths = np.sqrt(np.sum(z**2, axis=1) * scale)
    radius = radius_of_share(turn @ np.diag(axes) @ turn.T, 0.95, dof)
    assert np.mean(lengths <= radius) == pytest.approx(0.95, abs=0.0015)
    assert error_share_within(radius, np.diag(axes), dof) == pytest.approx(0.95, abs=1e-5)


def test_radius_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="share is 1"):
        radius_of_share(np.eye(3), 1.0)
    with pytest.raises(ValueError, match="dof is 0"):
        radius_of_share(np.eye(3), 0.95, 0.0)
    with pytest.raises(ValueError, match="negative eigenvalue"):
        radius_of_share(np.diag([1.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match="finite"):
        radius_of_share(np.full((3, 3), np.nan))


def test_effective_dof_of_sums() -> None:
    assert effective_dof(4.0, [(4.0, 10.0)]) == pytest.approx(10.0)
    assert effective_dof(8.0, [(4.0, 10.0)]) == pytest.approx(40.0)
    assert math.isinf(effective_dof(4.0, []))
