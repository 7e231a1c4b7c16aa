"""What parts of an ultrasound image ask for, and how far a rigid pose may be off because of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nav.registration.landmarks import point_jacobian
from nav.registration.ultrasound_motion import (
    LENGTH_MM,
    MOTION_MM,
    POSE_MM,
    SHIFTS_MM,
    UnseenMotion,
    _asked,
    unseen_motion,
)

Array = NDArray[np.float64]

RNG = np.random.default_rng(5)
PLACES = np.stack(np.meshgrid([-60.0, -20, 20, 60], [-40.0, 40], [-50.0, 50], indexing="ij"), -1).reshape(-1, 3)
WEIGHTS = RNG.uniform(40.0, 80.0, len(PLACES))
AWAY = np.array([[0.0, 0, 0], [50, 30, -40], [0, 0, 400]])


def explained(wanted: Array, peak: float = 4.0, width_mm: float = 3.0) -> Array:
    """(r, g): parts that are explained best where they are ``wanted`` (r, 3), by so much, and less about it."""
    apart = ((SHIFTS_MM[None] - wanted[:, None]) ** 2).sum(axis=2)
    return np.asarray(peak * np.exp(-0.5 * apart / width_mm**2))


def smooth(points: Array) -> Array:
    """No rigid motion comes near it: stretched along x, up to 3 mm either way, and bent."""
    x, y, z = points.T
    return np.stack([x / 20.0, 2.5 * np.cos(x / 40.0) - 1.2, y / 25.0 + 0.0 * z], axis=-1)


def size_mm(found: UnseenMotion, points: Array) -> Array:
    return np.sqrt(np.trace(found.second_moment_at(points), axis1=1, axis2=2))


def test_it_is_the_mean_over_all_sizes_of_motion_and_pose() -> None:
    """Against the plain formulas: at each pair of sizes the posterior of the error at the points."""
    surfaces = explained(smooth(PLACES) + RNG.normal(0, 0.5, PLACES.shape))
    found = unseen_motion(surfaces, PLACES, WEIGHTS)
    information, pull = _asked(surfaces)
    count, every = len(PLACES), np.concatenate([PLACES, AWAY])
    centre = np.average(PLACES, axis=0, weights=WEIGHTS)
    size = np.sqrt(np.average(((PLACES - centre) ** 2).sum(axis=1), weights=WEIGHTS))
    known = np.zeros((3 * count, 3 * count))
    for n in range(count):
        known[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] = information[n]
    turn = point_jacobian(every - centre).reshape(-1, 6)
    like = np.exp(-0.5 * ((every[:, None] - every) ** 2).sum(axis=2) / LENGTH_MM**2)
    logs, moments, motion = [], [], []
    for a in MOTION_MM:
        for s in POSE_MM:
            pose = turn @ np.diag([s**2] * 3 + [(s / size) ** 2] * 3) @ turn.T
            before = a**2 * np.kron(like, np.eye(3)) + pose
            noise = np.linalg.inv(known)
            gain = before[:, : 3 * count] @ np.linalg.inv(before[: 3 * count, : 3 * count] + noise)
            asked = noise @ pull.ravel()  # what each part asks for, mm
            mean, covariance = gain @ asked, before - gain @ before[: 3 * count]
            spread = before[: 3 * count, : 3 * count] + noise
            logs.append(-0.5 * (asked @ np.linalg.solve(spread, asked) + np.linalg.slogdet(spread)[1]))
            m = mean[3 * count :].reshape(-1, 3)
            blocks = covariance[3 * count :, 3 * count :].reshape(len(AWAY), 3, len(AWAY), 3)
            moments.append(np.einsum("nanb->nab", blocks) + m[:, :, None] * m[:, None])
            motion.append(a**2)
    belief = np.exp(np.array(logs) - max(logs))
    belief /= belief.sum()
    np.testing.assert_allclose(
        found.second_moment_at(AWAY), np.tensordot(belief, moments, axes=1), rtol=1e-5, atol=1e-5
    )
    assert found.motion_mm == pytest.approx(np.sqrt(belief @ motion), rel=1e-6)


def test_parts_that_ask_for_nothing_leave_little_and_those_that_disagree_say_motion() -> None:
    still = unseen_motion(explained(np.zeros_like(PLACES)), PLACES, WEIGHTS)
    moved = unseen_motion(explained(smooth(PLACES)), PLACES, WEIGHTS)
    assert still.motion_mm < 0.5
    assert (size_mm(still, PLACES) < 1.5).all()
    assert moved.motion_mm > 1.5
    assert (size_mm(moved, PLACES) > 0.7 * np.linalg.norm(smooth(PLACES), axis=1)).all()
    # Far from all parts what was seen says little, and a turn of the pose much.
    for found in (still, moved):
        assert size_mm(found, AWAY[2:])[0] > 1.5 * size_mm(found, AWAY[:1])[0]


def test_parts_that_ask_for_the_same_say_that_the_pose_is_off_and_not_that_tissue_moved() -> None:
    shifted = unseen_motion(explained(np.tile([3.0, 0.0, -2.0], (len(PLACES), 1))), PLACES, WEIGHTS)
    moment = shifted.second_moment_at(AWAY[:1])[0]
    assert shifted.motion_mm < 1.0
    assert moment[0, 0] == pytest.approx(9.0, abs=3.0)
    assert moment[0, 2] == pytest.approx(-6.0, abs=2.5)
    assert moment[1, 1] < 1.5


def test_parts_that_show_nothing_leave_open_what_may_be() -> None:
    nothing = unseen_motion(np.zeros((len(PLACES), len(SHIFTS_MM))), PLACES, WEIGHTS)
    expected = np.mean(np.square(MOTION_MM)) + np.mean(np.square(POSE_MM))
    centre = nothing.second_moment_at(nothing.centre_ras)[0]
    np.testing.assert_allclose(centre, expected * np.eye(3), rtol=0.02, atol=0.3)
