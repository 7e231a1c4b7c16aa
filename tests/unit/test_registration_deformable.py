"""Deformable registration: known deformations of a simulated body are found, and what cannot be right is said."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from nav.geometry.displacement import DisplacementField
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.registration.deformable import DeformableRegistration, prepare_device, register_deformable
from nav.registration.deformable_device import DeviceError, device_named
from nav.registration.deformable_refinement import LEAST_JACOBIAN, without_folds
from nav.registration.deformable_stage import level_images, stages_of
from nav.registration.verdict import ImageRegistrationError, Verdict
from tests.bodies import BODY, BODY_GRID, away, body

NAME = "MovingToFixed"
STAYS = Rigid.identity(NAME)
#: The scanner's: every axis has another spacing, i runs to the left.
GRID = np.array([[-2.6, 0, 0, 190.0], [0, 3.0, 0, 1.0], [0, 0, 3.4, 1.0], [0, 0, 0, 1.0]])
SHAPE = (56, 63, 72)


def voxels(grid: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """(k, j, i, 3) RAS mm."""
    k, j, i = np.indices(shape)
    return np.asarray(np.stack([i, j, k], axis=-1) @ grid[:3, :3].T + grid[:3, 3])


def smooth_motion(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, 3) mm of points, RAS mm: up to 9 mm, over waves of some 15 cm."""
    x, y, z = np.moveaxis(points / 24.0, -1, 0)
    return np.stack([4 * np.sin(y) + 2 * np.cos(z), 5 * np.cos(x + 0.5), 4 * np.sin(z - x)], axis=-1)


def textured(of: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """With the unevenness of real tissue: in flat organs nothing could be followed."""
    texture = gaussian_filter(np.random.default_rng(seed).normal(0, 1, of.shape), 2.0)
    return np.where(of > -500.0, of + 60.0 * texture / texture.std(), of)


TISSUE = textured(BODY, 11)
OTHER = textured(body(9), 12)


def image(where: NDArray[np.float64], grid: NDArray[np.float64], seed: int, of: NDArray[np.float64] = TISSUE) -> Volume:
    """The body as it lies at places (k, j, i, 3), RAS mm, of a grid; cubic, with noise."""
    at = where @ np.linalg.inv(BODY_GRID)[:3, :3].T
    values = map_coordinates(of, np.moveaxis(at[..., ::-1], -1, 0), order=3, mode="constant", cval=-1000.0)
    return Volume.of(np.rint(values + np.random.default_rng(seed).normal(0, 10, values.shape)).astype(np.int16), grid)


MOVING = image(voxels(BODY_GRID, BODY.shape), BODY_GRID, 1)
WHERE = voxels(GRID, SHAPE)
FIXED = image(WHERE + smooth_motion(WHERE), GRID, 2)
INSIDE = WHERE[gaussian_filter((FIXED.array > -200).astype(float), 1.0) > 0.95][::29]


@pytest.fixture(scope="module")
def found() -> DeformableRegistration:
    return register_deformable(FIXED, MOVING, initial=STAYS)


def errors_mm(result: DeformableRegistration) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(result.displacement.displacement_at(INSIDE) - smooth_motion(INSIDE), axis=1))


def test_a_known_deformation_is_found(found: DeformableRegistration) -> None:
    errors = errors_mm(found)
    assert np.linalg.norm(smooth_motion(INSIDE), axis=1).mean() > 5.0
    assert errors.mean() < 0.7
    assert np.percentile(errors, 95) < 1.6
    assert (found.verdict, found.reasons) == (Verdict.GOOD, ())
    assert found.folded_fraction == 0.0
    assert found.jacobian_min >= LEAST_JACOBIAN
    assert found.similarity_after > max(0.8, found.similarity_before + 0.2)


def test_the_stated_error_holds_most_of_the_true_ones(found: DeformableRegistration) -> None:
    within = {share: (errors_mm(found) <= found.expected_error_mm(INSIDE, share)).mean() for share in (0.5, 0.95)}
    assert 0.3 < within[0.5] < 0.8
    assert within[0.95] > 0.88
    assert np.median(found.expected_error_mm(INSIDE)) < 2.0
    # Where there is nothing to hold on to, it is larger.
    air = WHERE[FIXED.array < -900][::97]
    assert np.median(found.expected_error_mm(air)) > 1.5 * np.median(found.expected_error_mm(INSIDE))


def test_it_is_the_same_on_any_number_of_threads(found: DeformableRegistration) -> None:
    numba.set_num_threads(1)
    try:
        again = register_deformable(FIXED, MOVING, initial=STAYS)
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    assert np.array_equal(again.displacement.vectors, found.displacement.vectors)
    assert np.array_equal(again.error_field.array, found.error_field.array)


def test_a_gpu_finds_the_same(found: DeformableRegistration) -> None:
    if numba.config.ENABLE_CUDASIM:  # type: ignore[attr-defined]
        pytest.skip("the simulator of a GPU would take an hour")
    try:
        device = device_named("cuda")
    except DeviceError as missing:
        pytest.skip(str(missing))
    prepare_device(device)
    one, two = (register_deformable(FIXED, MOVING, initial=STAYS, device=device) for _ in range(2))
    assert np.array_equal(one.displacement.vectors, two.displacement.vectors)
    away = one.displacement.displacement_at(INSIDE) - found.displacement.displacement_at(INSIDE)
    assert np.percentile(np.linalg.norm(away, axis=1), 99) < 0.05
    assert one.verdict is found.verdict


def test_a_pose_goes_first() -> None:
    pose = away(12.0, 8.0)
    turned = image((WHERE + smooth_motion(WHERE)) @ pose[:3, :3].T + pose[:3, 3], GRID, 3)
    result = register_deformable(turned, MOVING, initial=Rigid.from_matrix(np.linalg.inv(pose), NAME))
    there = (INSIDE + smooth_motion(INSIDE)) @ pose[:3, :3].T + pose[:3, 3]
    errors = np.linalg.norm(result.displacement.apply(INSIDE) - there, axis=1)
    assert np.median(errors) < 0.6
    assert result.verdict is Verdict.GOOD


def test_contrast_may_differ_from_place_to_place() -> None:
    place = voxels(BODY_GRID, BODY.shape)
    gain = 1.0 + 0.4 * np.sin(place[..., 0] / 30.0)
    brighter = Volume.of((np.where(TISSUE > -200, TISSUE * gain + 60.0, TISSUE)).astype(np.float32), BODY_GRID)
    result = register_deformable(FIXED, brighter, initial=STAYS)
    assert errors_mm(result).mean() < 0.8
    assert result.verdict is Verdict.GOOD


def test_what_slides_is_followed_on_both_sides() -> None:
    # A core moves 18 mm along the axis inside a shell that stays.
    rng = np.random.default_rng(5)
    texture = gaussian_filter(rng.normal(0, 1, (64, 48, 48)), 1.5)
    texture *= 150.0 / texture.std()
    radius = np.hypot(*(np.indices((64, 48, 48))[1:] - 23.5)) * 3.0
    core = radius < 40.0
    moved = np.where(core, np.roll(texture, 6, axis=0), texture)
    one, two = (Volume.of(a.astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0])) for a in (texture, moved))
    result = register_deformable(one, two, initial=STAYS)
    k, j, i = np.indices((64, 48, 48))[:, 12:-12, 4:-4:3, 4:-4:3].reshape(3, -1)
    here = result.displacement.displacement_at(3.0 * np.stack([i, j, k], axis=1))[:, 2]
    deep, out = radius[k, j, i] < 31.0, (radius[k, j, i] > 49.0) & (radius[k, j, i] < 62.0)
    assert np.median(np.abs(here[deep] - 18.0)) < 0.7
    assert np.median(np.abs(here[out])) < 0.7
    assert result.folded_fraction == 0.0


def test_landmarks_pull_where_the_images_are_blind() -> None:
    array = np.full((32, 32, 32), 100.0, np.float32)
    array[:, :, :4] = 0.0
    array += np.random.default_rng(6).normal(0, 0.1, array.shape).astype(np.float32)
    volume = Volume.of(array, np.diag([4.0, 4.0, 4.0, 1.0]))
    place = np.array([[80.0, 64.0, 64.0]])
    free = register_deformable(volume, volume, initial=STAYS).displacement.displacement_at(place)
    pulled = register_deformable(
        volume, volume, initial=STAYS, landmarks=(place, place + np.array([0.0, 4.0, 0.0]), np.array([1.0]))
    ).displacement.displacement_at(place)
    assert np.linalg.norm(free) < 0.5
    assert 2.0 < pulled[0, 1] < 4.5
    with pytest.raises(ImageRegistrationError, match="landmarks have shapes"):
        register_deformable(volume, volume, initial=STAYS, landmarks=(place, place[0], np.array([1.0])))
    with pytest.raises(ImageRegistrationError, match="finite"):
        register_deformable(volume, volume, initial=STAYS, landmarks=(place, place * np.nan, np.array([1.0])))


def test_an_earlier_field_saves_the_search(found: DeformableRegistration) -> None:
    again = register_deformable(FIXED, MOVING, initial=STAYS, start=found.displacement)
    assert errors_mm(again).mean() < 1.1 * errors_mm(found).mean()
    assert again.iterations < found.iterations


def test_a_mask_is_where_it_looks() -> None:
    # The upper half of the moving image is another body: outside the mask it does not matter.
    spoiled = MOVING.array.copy()
    spoiled[60:] = image(voxels(BODY_GRID, BODY.shape), BODY_GRID, 4, OTHER).array[60:]
    lower = (WHERE[..., 2] < 100.0).astype(np.uint8)
    result = register_deformable(FIXED, Volume.of(spoiled, BODY_GRID), initial=STAYS, fixed_mask=lower)
    inside = INSIDE[INSIDE[:, 2] < 90.0]
    errors = np.linalg.norm(result.displacement.displacement_at(inside) - smooth_motion(inside), axis=1)
    assert errors.mean() < 0.7


@pytest.mark.parametrize("wrong", ["mirrored", "another body", "far off"])
def test_what_cannot_be_right_is_not_called_good(wrong: str) -> None:
    where = voxels(BODY_GRID, BODY.shape)
    of = TISSUE
    if wrong == "mirrored":
        of = TISSUE[:, :, ::-1]
    elif wrong == "another body":
        of = OTHER
    else:
        where = where + np.array([0.0, 0.0, 70.0])
    result = register_deformable(FIXED, image(where, BODY_GRID, 5, of), initial=STAYS)
    assert result.verdict is not Verdict.GOOD
    assert result.reasons


def test_bad_input_is_named() -> None:
    good = Volume.of(np.random.default_rng(7).normal(0, 1, (16, 16, 16)).astype(np.float32), np.eye(4))
    nan = good.array.copy()
    nan[3, 4, 5] = np.nan
    cases = [
        (Volume.of(np.ones((16, 16, 16), np.float32), np.eye(4)), None, "moving image is constant"),
        (Volume.of(nan, np.eye(4)), None, "1 voxels that are not finite"),
        (Volume.of(good.array[:1], np.eye(4)), None, "every axis needs at least 8"),
        (good, np.zeros((16, 16, 16), np.uint8), "moving mask is empty"),
        (good, np.ones((16, 16, 15), np.uint8), "moving mask has"),
    ]
    for moving, mask, message in cases:
        with pytest.raises(ImageRegistrationError, match=message):
            register_deformable(good, moving, initial=STAYS, moving_mask=mask)


def test_images_that_do_not_overlap_are_implausible() -> None:
    far = BODY_GRID.copy()
    far[0, 3] = 500.0
    result = register_deformable(FIXED, Volume.of(MOVING.array, far), initial=STAYS)
    assert result.verdict is Verdict.IMPLAUSIBLE
    assert "lies inside the moving one" in result.reasons[0]


def test_progress_goes_up_to_all_and_can_cancel() -> None:
    shares: list[float] = []
    register_deformable(FIXED, MOVING, initial=STAYS, progress=lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)

    def stop(share: float, _: str) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        register_deformable(FIXED, MOVING, initial=STAYS, progress=stop)


def test_folds_are_smoothed_away() -> None:
    field = np.random.default_rng(8).normal(0, 2.0, (8, 9, 10, 3)).astype(np.float32)
    smooth, least, _ = without_folds(field, np.diag([4.0, 4.0, 4.0, 1.0]))
    assert least.min() >= LEAST_JACOBIAN
    assert not np.array_equal(smooth, field)
    same, _, _ = without_folds(smooth, np.diag([4.0, 4.0, 4.0, 1.0]))
    assert np.array_equal(same, smooth)


def test_beyond_the_moving_image_the_field_goes_on_and_says_so() -> None:
    half = Volume.of(MOVING.array[: MOVING.array.shape[0] // 2].copy(), BODY_GRID)
    part = register_deformable(FIXED, half, initial=STAYS)
    top = half.to_ras(np.array([[0.0, 0.0, half.array.shape[0] - 1.0]]))[0, 2]
    errors = np.linalg.norm(part.displacement.displacement_at(INSIDE) - smooth_motion(INSIDE), axis=1)
    seen, beyond = INSIDE[:, 2] < top - 15.0, INSIDE[:, 2] > top + 5.0
    assert part.verdict is Verdict.DOUBTFUL
    assert "beyond it the field is only continued" in part.reasons[0]
    assert np.median(errors[seen]) < 1.0
    assert (errors[beyond] <= part.expected_error_mm(INSIDE[beyond])).mean() > 0.9
    assert errors[beyond].max() < 25.0, "it is not pulled back into the image"


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_a_stage_takes_a_field_over_as_the_field_says(turn: float) -> None:
    rng = np.random.default_rng(31)
    grid = np.diag([5.0, 4.0, 6.0, 1.0]) @ np.array(
        [[np.cos(turn), -np.sin(turn), 0, 3], [np.sin(turn), np.cos(turn), 0, -2], [0, 0, 1, 1], [0, 0, 0, 1]]
    )
    other = DisplacementField.of(rng.normal(0, 5, (9, 8, 7, 3)).astype(np.float32), grid)
    levels = level_images(Volume.of(FIXED.array[:20, :21, :22].copy(), GRID), None, "fixed")
    stage = stages_of(levels, levels, np.eye(4), 0.0)[-1]
    nodes = Volume.of(np.zeros(stage.nodes, np.uint8), stage.ras_from_node)
    np.testing.assert_allclose(stage.field_of(other), other.at_nodes_of(nodes).vectors, atol=1e-3)
