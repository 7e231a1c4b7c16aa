"""Two images of one body: brought together, and wrong ones found out."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from nav.geometry.volume import Volume
from nav.io.image_file import swap_lps_ras
from nav.io.itk import sitk
from nav.io.itk_transform import write_itk_rigid
from nav.registration.rigid_image import register_rigid
from nav.registration.verdict import ImageRegistrationError, Verdict
from tests.bodies import BODY, BODY_GRID, GRIDS, POINTS, away, body, errors_mm, seen, start


@pytest.mark.parametrize("fixed", list(GRIDS))
@pytest.mark.parametrize("moving", ["lps", "oblique"])
def test_two_scans_on_any_grids_come_together(fixed: str, moving: str, tmp_path: Path) -> None:
    truth = away(14.0, 9.0)
    result = register_rigid(seen(*GRIDS[fixed], seed=1), seen(*GRIDS[moving], truth, seed=2), initial=start())
    assert result.verdict is Verdict.GOOD, result.reasons
    errors = errors_mm(result, truth)
    assert errors.max() < 0.15
    # One in twenty may lie beyond the radius that holds 95 %.
    assert errors.mean() < 1.5 * result.expected_error_mm(POINTS.T).mean() < 0.3
    assert result.similarity_before < 0.9 < result.similarity_after
    # ITK, which knows nothing of us, takes a point of the fixed image to the same place.
    write_itk_rigid(tmp_path / "t.tfm", result.transform)
    itk = sitk.ReadTransform(str(tmp_path / "t.tfm"))
    for point in POINTS.T[:20]:
        there = swap_lps_ras(itk.TransformPoint(swap_lps_ras(point).tolist()))
        np.testing.assert_allclose(there, result.transform.inverse().apply(point), atol=1e-3)


def test_the_result_is_the_same_to_the_bit_on_any_number_of_threads() -> None:
    fixed, moving = seen(*GRIDS["lps"], seed=1), seen(*GRIDS["oblique"], away(6.0, 5.0), seed=2)
    before = numba.get_num_threads()
    found = []
    try:
        for threads in (1, min(2, before), before):
            numba.set_num_threads(threads)
            found.append(register_rigid(fixed, moving, initial=start()))
    finally:
        numba.set_num_threads(before)
    for other in found[1:]:
        assert np.array_equal(other.transform.matrix, found[0].transform.matrix)
        assert np.array_equal(other.covariance, found[0].covariance)


@pytest.mark.parametrize(("millimetres", "degrees"), [(20.0, 15.0), (60.0, 10.0), (10.0, 40.0)])
def test_within_and_beyond_the_capture_range(millimetres: float, degrees: float) -> None:
    truth = away(millimetres, degrees, seed=8)
    result = register_rigid(seen(*GRIDS["lps"], seed=1), seen(*GRIDS["lps"], truth, seed=2), initial=start())
    assert errors_mm(result, truth).max() < 0.2


def test_a_start_that_is_given_is_used() -> None:
    truth = away(90.0, 80.0)
    near = truth @ away(5.0, 5.0, seed=9)
    moving = seen(GRIDS["lps"][0], (96, 96, 96), seed=2)
    placed = Volume.of(moving.array, truth @ moving.ras_from_index)
    result = register_rigid(seen(*GRIDS["lps"], seed=1), placed, initial=start(near))
    assert result.verdict is Verdict.GOOD, result.reasons
    assert errors_mm(result, truth).max() < 0.2


def test_half_a_field_of_view_and_another_dose_and_window() -> None:
    truth = away(8.0, 6.0)
    half = seen(BODY_GRID, (48, 96, 96), truth, seed=2, noise=40.0)
    brighter = Volume.of((half.array * 1.2 + 100).astype(np.int16), half.ras_from_index)
    result = register_rigid(seen(*GRIDS["lps"], seed=1), brighter, initial=start())
    assert result.verdict is Verdict.GOOD, result.reasons
    assert errors_mm(result, truth).max() < 0.3
    assert result.overlap < 0.7
    assert result.scale == pytest.approx(1 / 1.2, rel=0.05)


def test_a_table_that_stays_does_not_hold_the_body_back() -> None:
    truth = away(0.0, 0.0)
    truth[:3, 3] = 6.0, 4.0, -5.0
    volumes = []
    for seed, pose in ((1, None), (2, truth)):
        volume = seen(*GRIDS["ras"], pose, seed=seed)
        array = volume.array.copy()
        array[:, 3:5, 10:86] = -600  # a shell of carbon fibre
        array[:, 5:8, 10:86] = np.maximum(array[:, 5:8, 10:86], -950)  # and its foam
        volumes.append(Volume.of(array, volume.ras_from_index))
    result = register_rigid(*volumes, initial=start())
    assert errors_mm(result, truth).max() < 0.3


def test_masks_say_where_to_look() -> None:
    truth = away(5.0, 4.0)
    fixed, moving = seen(*GRIDS["lps"], seed=1), seen(*GRIDS["lps"], truth, seed=2)
    spoilt = moving.array.copy()
    spoilt[:40] = np.random.default_rng(5).integers(-1000, 1000, spoilt[:40].shape)
    mask = np.ones(spoilt.shape, np.uint8)
    mask[:42] = 0
    masked = register_rigid(fixed, Volume.of(spoilt, moving.ras_from_index), initial=start(), moving_mask=mask)
    assert masked.verdict is Verdict.GOOD, masked.reasons
    assert errors_mm(masked, truth).max() < 0.4
    assert masked.overlap < 0.75
    part = np.zeros(fixed.array.shape, bool)
    part[45:80, 20:76, 20:76] = True
    assert errors_mm(register_rigid(fixed, moving, initial=start(), fixed_mask=part), truth).max() < 0.4


@pytest.mark.parametrize("wrong", ["another patient", "mirrored", "another modality", "far off"])
def test_what_is_wrong_is_never_called_good(wrong: str) -> None:
    fixed = seen(*GRIDS["ras"], seed=1)
    moving = seen(*GRIDS["ras"], away(4.0, 3.0), seed=2)
    match wrong:
        case "another patient":
            moving = seen(*GRIDS["ras"], of=body(2), seed=2)
        case "mirrored":
            moving = Volume.of(np.ascontiguousarray(moving.array[:, :, ::-1]), moving.ras_from_index)
        case "another modality":
            values = moving.array.astype(float)
            moving = Volume.of((900 * np.exp(-(((values - 40) / 60) ** 2))).astype(np.int16), moving.ras_from_index)
        case "far off":
            moving = seen(*GRIDS["ras"], away(30.0, 150.0), seed=2)
    result = register_rigid(fixed, moving, initial=start())
    assert result.verdict is not Verdict.GOOD
    assert result.reasons
    if wrong == "another modality":
        assert any("mutual-information" in reason for reason in result.reasons)


def test_a_body_that_changed_its_shape_is_doubted_and_the_error_is_not_understated() -> None:
    k, j, i = np.indices(BODY.shape).astype(float)
    rng = np.random.default_rng(6)
    shift = np.stack([gaussian_filter(rng.normal(0, 1, BODY.shape), 14) for _ in range(3)])
    shift *= 8.0 / 2.0 / np.linalg.norm(shift, axis=0).max()  # up to 8 mm
    bent = map_coordinates(BODY, np.stack([k, j, i]) + shift, order=3, mode="nearest")
    result = register_rigid(seen(*GRIDS["ras"], seed=1), seen(*GRIDS["ras"], of=bent, seed=2), initial=start())
    assert result.verdict is not Verdict.GOOD
    assert any("shape" in reason for reason in result.reasons)
    inside = np.linalg.norm(shift * 2.0, axis=0)[30:66, 30:66, 30:66]
    assert result.expected_error_mm(result.centre_ras)[0] > 0.8 * np.percentile(inside, 95)


def test_noise_in_the_gradients_does_not_make_the_stated_error_too_small() -> None:
    truth = away(6.0, 5.0)
    clear = [seen(*GRIDS["lps"], noise=0.0), seen(*GRIDS["lps"], truth, noise=0.0)]
    rng = np.random.default_rng(7)
    squares, variances = [], []
    for _ in range(8):
        fixed, moving = (
            Volume.of(np.rint(v.array + rng.normal(0, 20.0, v.array.shape)).astype(np.int16), v.ras_from_index)
            for v in clear
        )
        result = register_rigid(fixed, moving, initial=start())
        squares.append(float((errors_mm(result, truth) ** 2).mean()))
        variances.append(float(np.trace(result.covariance_at(POINTS.T[::10]), axis1=1, axis2=2).mean()))
    # Taken for curvature, the squares of noisy gradients state less than half of the variance that is there. Too
    # much may be stated, up to five times the variance.
    assert 0.2 < np.mean(squares) / np.mean(variances) < 1.0


def test_progress_is_told_and_can_end_it() -> None:
    told: list[tuple[float, str]] = []
    fixed, moving = seen(*GRIDS["ras"], seed=1), seen(*GRIDS["ras"], away(2.0, 2.0), seed=2)
    register_rigid(fixed, moving, initial=start(), progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0

    class Cancelled(Exception):
        pass

    def cancel(share: float, _: str) -> None:
        if share > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        register_rigid(fixed, moving, initial=start(), progress=cancel)


def test_bad_input_is_named() -> None:
    fixed = seen(*GRIDS["ras"], seed=1)
    grid = fixed.ras_from_index

    def refused(text: str, moving: Volume = fixed, **options: NDArray[np.generic]) -> None:
        with pytest.raises(ImageRegistrationError, match=text):
            register_rigid(fixed, moving, initial=start(), **options)  # type: ignore[arg-type]

    refused("fixed mask is empty", fixed_mask=np.zeros(fixed.array.shape, bool))
    refused(r"moving mask has \(2, 3, 4\) voxels", moving_mask=np.ones((2, 3, 4), bool))
    refused("moving image is constant", Volume.of(np.full((20, 20, 20), 7, np.int16), grid))
    refused(r"moving image has \(96, 96, 1\) voxels", Volume.of(fixed.array[:1], grid))
    holes = fixed.array.astype(np.float32)
    holes[3, 4, 5:7] = np.nan
    refused("moving image holds 2 voxels that are not finite", Volume.of(holes, grid))
    corner = np.zeros(fixed.array.shape, np.uint8)
    corner[0, 0, 0] = 1
    refused("nothing in common", moving_mask=corner)
