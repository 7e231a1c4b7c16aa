"""A thick slice and a CT: brought together, local motion followed, and wrong ones found out."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from slice_phantom import (
    BODY,
    CENTRE,
    GRID,
    PIXELS,
    SHAPE,
    THICKNESS_MM,
    away,
    body,
    ct,
    oblique,
    placed,
    points_of,
    seen,
    upright,
)

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.registration.slice_deformable import deform_slice, needle_point
from nav.registration.slice_image import SliceImage
from nav.registration.slice_needle import without_shadow
from nav.registration.slice_preparation import SlicePreparation, prepare_for_slices
from nav.registration.slice_rigid import SliceRegistration, register_slice
from nav.registration.verdict import ImageRegistrationError, Verdict

NAME = "MovingToFixed"
HERE = Rigid.identity(NAME)
GRIDS = {"upright": upright(), "oblique": oblique()}


def prepared_for(grid: NDArray[np.float64], of: Volume | None = None) -> SlicePreparation:
    return prepare_for_slices(of or ct(), thickness_mm=THICKNESS_MM, normal_ras=np.cross(grid[:3, 0], grid[:3, 1]))


@pytest.fixture(scope="module")
def prepared() -> dict[str, SlicePreparation]:
    return {name: prepared_for(grid) for name, grid in GRIDS.items()}


def errors_mm(
    result: SliceRegistration, truth: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    away_by = result.transform.apply(points) - (points @ truth[:3, :3].T + truth[:3, 3])
    return np.asarray(np.linalg.norm(away_by, axis=1))


@pytest.mark.parametrize("name", list(GRIDS))
@pytest.mark.parametrize("needle", [False, True])
def test_a_slice_is_found(prepared: dict[str, SlicePreparation], name: str, needle: bool) -> None:
    truth, points = away(10.0, 8.0), points_of(GRIDS[name])
    result = register_slice(prepared[name], seen(GRIDS[name], truth, needle=needle), initial=HERE)
    assert result.verdict is Verdict.GOOD, result.reasons
    errors = errors_mm(result, truth, points)
    assert errors.mean() < 0.4
    stated = result.expected_error_mm(result.transform.apply(points))
    # Voxels of 2.5 mm: what interpolation adds is not in the stated error.
    assert errors.mean() < 1.3 * stated.mean() < 1.5
    assert result.similarity_before < 0.9 < result.similarity_after
    assert result.scale == pytest.approx(1.0, abs=0.1)


def test_a_stack_is_found_as_one(prepared: dict[str, SlicePreparation]) -> None:
    grid, truth = placed(np.diag([-1.0, -1.0, 1.0]), slices=3), away(9.0, 7.0, seed=6)
    result = register_slice(prepared["upright"], seen(grid, truth, slices=3), initial=HERE)
    assert result.verdict is Verdict.GOOD, result.reasons
    assert errors_mm(result, truth, points_of(grid)).mean() < 0.3


def test_a_start_that_is_given_is_used(prepared: dict[str, SlicePreparation]) -> None:
    truth = away(60.0, 30.0)
    near = away(5.0, 4.0, seed=9)
    # The slice was taken with the patient elsewhere: only the start says where.
    grid = np.linalg.inv(truth) @ GRIDS["upright"]
    start = Rigid.from_matrix(truth @ near, NAME)
    result = register_slice(prepared["upright"], seen(grid, truth), initial=start)
    assert errors_mm(result, truth, points_of(grid)).mean() < 0.4


def test_the_result_is_the_same_to_the_bit_on_any_number_of_threads() -> None:
    slices = seen(GRIDS["upright"], away(6.0, 5.0), needle=True)
    before = numba.get_num_threads()
    found = []
    try:
        for threads in (1, min(2, before), before):
            numba.set_num_threads(threads)
            again = prepared_for(GRIDS["upright"])
            rigid = register_slice(again, slices, initial=HERE)
            found.append((rigid, deform_slice(again, slices, rigid, around=needle_point(slices))))
    finally:
        numba.set_num_threads(before)
    for rigid, deformed in found[1:]:
        assert np.array_equal(rigid.transform.matrix, found[0][0].transform.matrix)
        assert np.array_equal(rigid.covariance, found[0][0].covariance)
        assert np.array_equal(deformed.coefficients, found[0][1].coefficients)


def test_pixels_that_are_not_numbers_and_masked_ones_are_not_looked_at(prepared: dict[str, SlicePreparation]) -> None:
    truth = away(6.0, 5.0)
    slices = seen(GRIDS["upright"], truth)
    values = slices.array.astype(np.float32)
    values[:, :40] = np.nan
    spoilt = np.where(np.isnan(values), np.float32(500.0), values)
    mask = np.isfinite(values)
    one = register_slice(prepared["upright"], Volume.of(values, slices.ras_from_index), initial=HERE)
    two = register_slice(prepared["upright"], Volume.of(spoilt, slices.ras_from_index), initial=HERE, mask=mask)
    assert np.array_equal(one.transform.matrix, two.transform.matrix)
    assert errors_mm(one, truth, points_of(GRIDS["upright"])).mean() < 1.0


def test_mirrored_slices_other_patients_and_wrong_places_are_implausible(prepared: dict[str, SlicePreparation]) -> None:
    grid = GRIDS["upright"]
    right = seen(grid, away(5.0, 4.0))
    mirrored = Volume.of(np.ascontiguousarray(right.array[:, :, ::-1]), grid)
    far = seen(grid @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 9.0], [0, 0, 0, 1]]), np.eye(4))
    far = Volume.of(far.array, grid)  # 45 mm from where it says
    other = seen(grid, np.eye(4), of=body(7))
    for slices in (mirrored, far, other):
        result = register_slice(prepared["upright"], slices, initial=HERE)
        assert result.verdict is Verdict.IMPLAUSIBLE
        assert result.reasons


def bump(target: NDArray[np.float64], peak: NDArray[np.float64], width: float = 25.0):  # type: ignore[no-untyped-def]
    return lambda p: np.exp(-0.5 * ((p - target) ** 2).sum(axis=1) / width**2)[:, None] * peak


@pytest.mark.parametrize("peak", [[7.0, 3.0, 0.0], [2.0, 0.0, 7.0]])
def test_local_motion_is_followed(prepared: dict[str, SlicePreparation], peak: list[float]) -> None:
    grid, truth = GRIDS["upright"], away(4.0, 3.0)
    slices = seen(grid, truth, needle=True, motion=bump(CENTRE, np.array(peak)))
    rigid = register_slice(prepared["upright"], slices, initial=HERE)
    target = needle_point(slices)
    assert np.linalg.norm(target - CENTRE) < 45.0  # somewhere along the shaft, from the middle to the border
    deformed = deform_slice(prepared["upright"], slices, rigid, around=CENTRE)
    near = points_of(grid)
    near = near[np.linalg.norm(near - CENTRE, axis=1) < 30.0]
    wanted = near @ truth[:3, :3].T + truth[:3, 3] + bump(CENTRE, np.array(peak))(near)
    before = np.linalg.norm(rigid.transform.apply(near) - wanted, axis=1)
    after = np.linalg.norm(deformed.to_ct(near) - wanted, axis=1)
    assert before.mean() > 4.0
    assert after.mean() < 0.4 * before.mean()
    assert (after <= deformed.expected_error_mm(near)).mean() > 0.7
    assert deformed.quiet >= deformed.quiet_before
    assert deformed.folded_fraction == 0.0
    assert 0.3 < deformed.jacobian_min < 1.0 < deformed.jacobian_max
    # Far from the needle nothing moves.
    far = (CENTRE + 85.0 * np.array([1.0, 0, 0]))[None]
    np.testing.assert_array_equal(deformed.displacement_at(far), np.zeros((1, 3)))


def test_a_pose_says_that_a_piece_of_the_slice_has_moved(prepared: dict[str, SlicePreparation]) -> None:
    grid, truth = GRIDS["upright"], away(4.0, 3.0)
    place = CENTRE + np.array([30.0, 30.0, 0.0])
    points = points_of(grid)
    there = np.linalg.norm(points - place, axis=1) < 20.0
    stated, verdicts = [], []
    for peak in (0.0, 10.0):
        moved = bump(place, np.array([0.0, peak, 0.0]), width=22.0)
        found = register_slice(prepared["upright"], seen(grid, truth, motion=moved), initial=HERE)
        at = found.transform.apply(points)
        errors = np.linalg.norm(at - (points @ truth[:3, :3].T + truth[:3, 3] + moved(points)), axis=1)
        stated.append(found.expected_error_mm(at))
        verdicts.append(found.verdict)
        assert (errors <= stated[-1]).mean() > 0.85
    assert verdicts == [Verdict.GOOD, Verdict.DOUBTFUL]
    assert any("moved on its own" in reason for reason in found.reasons)
    assert stated[0].max() < 2.0
    assert stated[1][there].mean() > 3.0 * stated[0][there].mean()
    # It widens where something has moved, more than elsewhere.
    assert stated[1][there].mean() > 1.5 * np.median(stated[1][~there])


def test_the_shadow_of_a_needle_is_not_known_and_as_wide_as_it_is() -> None:
    grid = np.diag([1.0, 1.0, 5.0, 1.0])
    values = np.random.default_rng(1).normal(40.0, 10.0, (1, 120, 120)).astype(np.float32)
    values[0, 59:61, 70:] = 2500.0
    image = SliceImage.of(Volume.of(values, grid))
    assert (image.known[0, 50] != 0).all()
    distance = np.abs(np.arange(120) - 59.5)
    # Unmeasured: as wide and as long as one can be.
    known = without_shadow(image).known[0] != 0
    np.testing.assert_array_equal(known[:, 100], distance >= 11.0)
    np.testing.assert_array_equal(known[:, 11], distance >= 11.0)
    assert known[:, :9].all()

    # 8 mm to either side of the shaft, and nothing beyond its tip.
    def residuals(pixels: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.where((np.abs(pixels[:, 1] - 59.5) < 8.0) & (pixels[:, 0] >= 70), -200.0, 0.0)

    known = without_shadow(image, residuals, 10.0).known[0] != 0
    np.testing.assert_array_equal(known[:, 100], distance >= 8.0)
    assert known[:50].all()
    assert known[:, :60].all()
    # A ball of metal is no needle, and neither is a speck.
    for part in (np.s_[0, 50:60, 50:60], np.s_[0, 50, 50:52]):
        ball = np.random.default_rng(2).normal(40.0, 10.0, (1, 120, 120)).astype(np.float32)
        ball[part] = 2500.0
        image = SliceImage.of(Volume.of(ball, grid))
        assert np.array_equal(without_shadow(image).known, image.known)


def test_no_motion_stays_none(prepared: dict[str, SlicePreparation]) -> None:
    slices = seen(GRIDS["upright"], away(4.0, 3.0))
    rigid = register_slice(prepared["upright"], slices, initial=HERE)
    np.testing.assert_allclose(needle_point(slices), CENTRE)  # no metal
    deformed = deform_slice(prepared["upright"], slices, rigid, around=CENTRE)
    assert deformed.longest_mm < 2.0


def changed(slices: Volume, array: NDArray[np.generic]) -> Volume:
    return Volume.of(array, slices.ras_from_index)


def test_what_cannot_be_registered_is_named(prepared: dict[str, SlicePreparation]) -> None:
    slices = seen(GRIDS["upright"], np.eye(4))
    values = slices.array
    ready = prepared["upright"]
    nothing = np.zeros(values.shape, np.uint8)
    for wrong, mask, text in (
        (changed(slices, np.repeat(values, 9, axis=0)), None, "9 slices, at most 8"),
        (changed(slices, np.full_like(values, 40)), None, "constant"),
        (changed(slices, np.full(values.shape, np.nan, np.float32)), None, "in 0 pixels only"),
        (slices, nothing, "mask is empty"),
        (slices, nothing[:, :5], "resample it"),
    ):
        with pytest.raises(ImageRegistrationError, match=text):
            register_slice(ready, wrong, initial=HERE, mask=mask)
    elsewhere = Rigid.from_matrix(away(300.0, 0.0), NAME)
    with pytest.raises(ImageRegistrationError, match="nothing in common"):
        register_slice(ready, slices, initial=elsewhere)
    with pytest.raises(ImageRegistrationError, match="prepare it for this direction"):
        register_slice(ready, seen(GRIDS["oblique"], np.eye(4)), initial=HERE)
    stripes = changed(slices, np.broadcast_to(np.int16(40) * (np.arange(PIXELS, dtype=np.int16) // 8), values.shape))
    smooth = prepared_for(
        GRIDS["upright"], Volume.of(np.broadcast_to(np.arange(SHAPE[2], dtype=np.int16), SHAPE), GRID)
    )
    with pytest.raises(ImageRegistrationError, match="too little to say where they lie"):
        register_slice(smooth, stripes, initial=HERE)
    rigid = register_slice(ready, slices, initial=HERE)
    with pytest.raises(ImageRegistrationError, match="outside the slices"):
        deform_slice(ready, slices, rigid, around=CENTRE + 500.0)
    with pytest.raises(ImageRegistrationError, match="one point"):
        deform_slice(ready, slices, rigid, around=[1.0, np.nan, 0.0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"thickness_mm": 0.0}, "above 0"),
        ({"thickness_mm": 30.0}, "at most 20"),
        ({"normal_ras": [0, 0, 0]}, "give a direction"),
        ({"mask": np.zeros(SHAPE)}, "mask is empty"),
        ({"mask": np.ones((2, 2, 2))}, "resample it"),
        ({"ct": Volume.of(BODY[:4].copy(), GRID)}, "at least 8"),
        ({"ct": Volume.of(np.full(SHAPE, 7, np.int16), GRID)}, "constant"),
        ({"ct": Volume.of(np.full(SHAPE, np.nan), GRID)}, "not finite"),
    ],
)
def test_a_ct_that_cannot_be_prepared_is_named(changes: dict[str, object], text: str) -> None:
    arguments: dict[str, object] = {"ct": ct(), "thickness_mm": 5.0, "normal_ras": [0, 0, 1]} | changes
    with pytest.raises(ImageRegistrationError, match=text):
        prepare_for_slices(arguments.pop("ct"), **arguments)  # type: ignore[arg-type]


def test_the_preparation_averages_along_any_direction_and_shifts_nothing() -> None:
    point = np.zeros((21, 21, 21), np.float32)
    point[10, 10, 10] = 1000.0
    for normal in ([0, 0, 1], [1, 0, 0], [1.0, 2.0, -2.0]):
        level = prepare_for_slices(Volume.of(point, np.eye(4)), thickness_mm=6.0, normal_ras=normal).levels[0]
        k, j, i = np.nonzero(level.volume.array)
        weight = level.volume.array[k, j, i].astype(np.float64)
        at = np.stack([i, j, k], 1) - 10.0
        assert weight.sum() == pytest.approx(1000.0, rel=1e-4)
        np.testing.assert_allclose((weight[:, None] * at).sum(axis=0) / weight.sum(), 0.0, atol=1e-3)
        # As wide as a box along it (and no less wide than a voxel's own look-up).
        unit = np.array(normal) / np.linalg.norm(normal)
        assert (weight * (at @ unit) ** 2).sum() / weight.sum() == pytest.approx(6.0**2 / 12.0, rel=0.15)


def test_what_progress_raises_ends_it(prepared: dict[str, SlicePreparation]) -> None:
    told: list[float] = []

    def stop(share: float, _text: str) -> None:
        told.append(share)
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        register_slice(prepared["upright"], seen(GRIDS["upright"], np.eye(4)), initial=HERE, progress=stop)
    assert told == sorted(told)
    assert len(told) > 1
