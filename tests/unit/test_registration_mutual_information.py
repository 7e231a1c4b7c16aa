"""Two images of one body that look nothing alike: brought together, and wrong ones found out."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nav.geometry.volume import Volume
from nav.registration.rigid_mutual_information import register_rigid_multimodal
from nav.registration.verdict import ImageRegistrationError, Verdict
from tests.bodies import BODY, BODY_GRID, GRIDS, POINTS, away, body, errors_mm, seen, start

#: HU and how bright another scanner shows it: not monotonic, not one to one.
CURVE = np.array([(-1000, 10), (-300, 60), (0, 700), (40, 420), (80, 150), (120, 520), (200, 60), (300, 300)]).T


def other_modality(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """As another scanner shows it, with a coil that is more sensitive on one side."""
    shown = np.interp(values, *CURVE)
    return shown * np.linspace(0.7, 1.3, shown.shape[2])


SEEN_OTHERWISE = other_modality(BODY)


def mr(
    grid: str, pose: NDArray[np.float64] | None = None, seed: int = 2, of: NDArray[np.float64] = SEEN_OTHERWISE
) -> Volume:
    """The other scanner's image; air is dark in it."""
    array, shape = GRIDS[grid]
    found = seen(array, shape, pose, of=of, noise=25.0, seed=seed)
    return Volume.of(np.maximum(found.array, 0), found.ras_from_index)


@pytest.mark.parametrize(("fixed", "moving"), [("ras", "oblique"), ("oblique", "lps")])
def test_two_modalities_come_together(fixed: str, moving: str) -> None:
    truth = away(9.0, 8.0)
    result = register_rigid_multimodal(seen(*GRIDS[fixed], seed=1), mr(moving, truth), initial=start())
    assert result.verdict is Verdict.GOOD, result.reasons
    errors = errors_mm(result, truth)
    assert errors.max() < 1.0  # half a voxel
    assert errors.mean() < result.expected_error_mm(POINTS.T).mean() < 2.5
    assert 0.0 <= result.similarity_before < result.similarity_after < 1.0
    assert result.scale is None


def test_the_other_way_round_and_what_differs_little() -> None:
    truth = away(6.0, 5.0)
    moving = seen(*GRIDS["lps"], np.linalg.inv(truth), seed=1)
    result = register_rigid_multimodal(mr("ras"), moving, initial=start())
    assert errors_mm(result, np.linalg.inv(truth)).max() < 1.0
    same = register_rigid_multimodal(seen(*GRIDS["ras"], seed=1), seen(*GRIDS["lps"], truth, seed=2), initial=start())
    assert same.verdict is Verdict.GOOD, same.reasons
    assert errors_mm(same, truth).max() < 0.3


def test_a_blurred_image_of_what_a_ct_hardly_shows() -> None:
    truth = away(7.0, 5.0)
    blurred = gaussian_filter(np.maximum(SEEN_OTHERWISE, 0.0), 2.5 / 2.355)  # 5 mm at 2 mm voxels
    result = register_rigid_multimodal(seen(*GRIDS["ras"], seed=1), mr("oblique", truth, of=blurred), initial=start())
    assert errors_mm(result, truth).max() < 1.0


def test_the_result_is_the_same_to_the_bit_on_any_number_of_threads() -> None:
    fixed, moving = seen(*GRIDS["lps"], seed=1), mr("oblique", away(6.0, 5.0))
    before = numba.get_num_threads()
    found = []
    try:
        for threads in (1, min(2, before), before):
            numba.set_num_threads(threads)
            found.append(register_rigid_multimodal(fixed, moving, initial=start()))
    finally:
        numba.set_num_threads(before)
    for other in found[1:]:
        assert np.array_equal(other.transform.matrix, found[0].transform.matrix)
        assert np.array_equal(other.covariance, found[0].covariance)


def test_masks_say_where_to_look() -> None:
    truth = away(5.0, 4.0)
    fixed, moving = seen(*GRIDS["lps"], seed=1), mr("lps", truth)
    spoilt = moving.array.copy()
    spoilt[:40] = np.random.default_rng(5).integers(0, 700, spoilt[:40].shape)
    mask = np.ones(spoilt.shape, np.uint8)
    mask[:42] = 0
    result = register_rigid_multimodal(
        fixed, Volume.of(spoilt, moving.ras_from_index), initial=start(), moving_mask=mask
    )
    assert errors_mm(result, truth).max() < 1.0
    assert result.overlap < 0.75
    part = np.zeros(fixed.array.shape, bool)
    part[30:80, 20:76, 20:76] = True
    assert errors_mm(register_rigid_multimodal(fixed, moving, initial=start(), fixed_mask=part), truth).max() < 1.0


@pytest.mark.parametrize("wrong", ["another patient", "mirrored", "far off"])
def test_what_is_wrong_is_never_called_good(wrong: str) -> None:
    moving = mr("ras", away(4.0, 3.0))
    match wrong:
        case "another patient":
            moving = mr("ras", of=other_modality(body(2)))
        case "mirrored":
            moving = Volume.of(np.ascontiguousarray(moving.array[:, :, ::-1]), moving.ras_from_index)
        case "far off":
            moving = mr("ras", away(30.0, 150.0))
    result = register_rigid_multimodal(seen(*GRIDS["ras"], seed=1), moving, initial=start())
    assert result.verdict is not Verdict.GOOD
    assert result.reasons
    assert np.isfinite(result.covariance).all()


def test_progress_is_told_and_can_end_it() -> None:
    told: list[float] = []
    fixed, moving = seen(*GRIDS["ras"], seed=1), mr("ras", away(2.0, 2.0))
    register_rigid_multimodal(fixed, moving, initial=start(), progress=lambda share, _: told.append(share))
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)

    class Cancelled(Exception):
        pass

    def cancel(share: float, _: str) -> None:
        if share > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        register_rigid_multimodal(fixed, moving, initial=start(), progress=cancel)


def test_bad_input_is_named() -> None:
    fixed = seen(*GRIDS["ras"], seed=1)

    def refused(text: str, moving: Volume = fixed, **options: NDArray[np.generic]) -> None:
        with pytest.raises(ImageRegistrationError, match=text):
            register_rigid_multimodal(fixed, moving, initial=start(), **options)  # type: ignore[arg-type]

    refused("moving image is constant", Volume.of(np.full((20, 20, 20), 7, np.int16), BODY_GRID))
    refused("moving mask is empty", moving_mask=np.zeros(fixed.array.shape, bool))
    corner = np.zeros(fixed.array.shape, np.uint8)
    corner[0, 0, 0] = 1
    refused("nothing in common", moving_mask=corner)
    speck = np.zeros(fixed.array.shape, np.uint8)
    speck[40:48, 40:48, 40:48] = 1
    refused("structure in .* places only", fixed_mask=speck)
