"""Smooth motion under the probe: followed where it is there, left alone where not, and what is not known is said."""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from nav.geometry.rigid import Rigid
from nav.registration.error_distribution import radius_of_share
from nav.registration.ultrasound_deformable import PRIOR_MM, UltrasoundDeformation, deform_ultrasound, judged
from nav.registration.ultrasound_image import KERNELS, UltrasoundRegistration, error_doubts, register_ultrasound
from nav.registration.verdict import Verdict
from tests.unit.test_registration_ultrasound import NAME, SWEEP, ct, points, ras_from_reference, start, sweep


def moved(ras: NDArray[np.float64]) -> NDArray[np.float64]:
    """Up to 4 mm; the rigid pose that fits best leaves 1.6 mm of it."""
    x, y, z = np.moveaxis(ras, -1, 0)
    return ras + np.stack([4.0 * np.sin(z / 40.0), 2.8 * np.sin(x / 40.0), 2.8 * np.sin(y / 40.0)], axis=-1)


MOVED = sweep(24, motion=moved)
TO_REFERENCE = Rigid.from_matrix(ras_from_reference(), NAME).inverse()


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    for spec in KERNELS:
        spec.compile()


def rigidly(found: UltrasoundRegistration) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(found.transform.apply(TO_REFERENCE.apply(points())) - moved(points()), axis=1))


@pytest.fixture(scope="module")
def found() -> UltrasoundDeformation:
    rigid = register_ultrasound(ct(), MOVED, initial=start(2.0, 1.0))
    return deform_ultrasound(ct(), MOVED, rigid)


@pytest.fixture(scope="module")
def still() -> UltrasoundRegistration:
    return register_ultrasound(ct(), SWEEP, initial=start(2.0, 1.0))


def test_motion_is_followed_and_the_stated_error_holds_it(found: UltrasoundDeformation) -> None:
    errors = np.linalg.norm(found.to_ct(TO_REFERENCE.apply(points())) - moved(points()), axis=1)
    assert found.followed
    assert errors.mean() < 0.6 * rigidly(found.rigid).mean()
    assert (errors < found.expected_error_mm(moved(points()))).mean() > 0.9
    assert found.similarity_after > found.similarity_before + 0.01
    assert 0.8 < found.jacobian_min < 1.0 < found.jacobian_max < 1.2
    assert found.folded_fraction == 0.0


def test_the_rigid_pose_says_that_it_may_be_off_where_tissue_has_moved(still: UltrasoundRegistration) -> None:
    def more(ras: NDArray[np.float64]) -> NDArray[np.float64]:
        return ras + 1.25 * (moved(ras) - ras)

    rigid = register_ultrasound(ct(), sweep(30, motion=more), initial=start(2.0, 1.0))
    errors = np.linalg.norm(rigid.transform.apply(TO_REFERENCE.apply(points())) - more(points()), axis=1)
    stated = rigid.expected_error_mm(more(points()))
    assert errors.mean() > 2.0
    assert (errors < stated).mean() > 0.9
    assert (stated > 1.2 * still.expected_error_mm(points())).all()
    assert rigid.motion.motion_mm > 1.5 * still.motion.motion_mm
    assert still.verdict is Verdict.GOOD
    assert rigid.verdict is not Verdict.GOOD
    assert any("ask for other places" in reason for reason in rigid.reasons)


def test_there_and_back_and_the_written_field_are_one(found: UltrasoundDeformation) -> None:
    there = found.to_reference(points())
    np.testing.assert_allclose(found.to_ct(there), points(), atol=1e-3)
    np.testing.assert_allclose(found.displacement().apply(points()), there, atol=0.1)


def test_where_nothing_has_moved_the_rigid_pose_stays_and_the_error_says_what_may_be(
    still: UltrasoundRegistration,
) -> None:
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        result = deform_ultrasound(ct(), SWEEP, still)
    finally:
        numba.set_num_threads(before)
    again = deform_ultrasound(ct(), SWEEP, still)
    assert not result.followed
    assert result.longest_mm == 0.0
    assert (result.verdict, result.reasons) == (still.verdict, still.reasons)
    p = TO_REFERENCE.apply(points())
    np.testing.assert_allclose(result.to_ct(p), still.transform.apply(p), atol=1e-9)
    assert np.array_equal(again.covariance, result.covariance)
    assert again.gain == result.gain
    assert (result.expected_error_mm(points()) > 1.0).all()
    # Away from the patches nothing is known but the prior.
    away = result.centre_ras + np.array([[150.0, 0.0, 0.0], [0.0, 0.0, -400.0]])
    assert (result.expected_error_mm(away) > radius_of_share(PRIOR_MM**2 * np.eye(3))).all()
    assert result.expected_error_mm(result.centre_ras)[0] < result.expected_error_mm(away).min()


def test_what_speaks_against_a_displacement_is_said_and_a_wrong_pose_stays_wrong(found: UltrasoundDeformation) -> None:
    rigid = replace(found.rigid, verdict=Verdict.GOOD, reasons=(), error_mm=3.0)
    good = replace(found, rigid=rigid, error_mm=3.0)
    assert judged(good) == (Verdict.GOOD, ())
    # What the rigid pose may be off by has been followed, or has not.
    (said,) = error_doubts(7.0)
    astray = replace(good, rigid=replace(rigid, verdict=Verdict.DOUBTFUL, reasons=(said,), error_mm=7.0))
    assert judged(astray) == (Verdict.GOOD, ())
    assert judged(replace(astray, followed=False)) == (Verdict.DOUBTFUL, (said,))
    assert judged(replace(astray, error_mm=7.0)) == (Verdict.DOUBTFUL, (said,))
    for change, verdict, text in (
        ({"folded_fraction": 0.02}, Verdict.IMPLAUSIBLE, "folds over in 2.0%"),
        ({"similarity_after": good.similarity_before - 0.01}, Verdict.IMPLAUSIBLE, "explains less"),
        ({"longest_mm": 13.0}, Verdict.DOUBTFUL, "tissue moves by up to 13.0 mm"),
    ):
        said, reasons = judged(replace(good, **change))
        assert said is verdict
        assert text in reasons[0]
    for verdict in (Verdict.IMPLAUSIBLE, Verdict.NOT_CONVERGED, Verdict.DOUBTFUL):
        rigid = replace(found.rigid, verdict=verdict, reasons=("too little",))
        assert judged(replace(good, rigid=rigid)) == (verdict, ("too little",))
