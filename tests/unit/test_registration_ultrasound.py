"""Tracked ultrasound onto a CT: brought home, and what is wrong is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.registration.ultrasound_frames import TrackedFrames, choose_frames, compound, planes_of_volume
from nav.registration.ultrasound_image import KERNELS, UltrasoundRegistration, register_ultrasound
from nav.registration.verdict import ImageRegistrationError, Verdict

NAME = "ReferenceToRas"
SHAPE = (64, 72, 72)
GRID = np.array([[-2.0, 0, 0, 70], [0, -2.0, 0, 75], [0, 0, 2.0, -60], [0, 0, 0, 1.0]])
ROWS, COLUMNS, PIXEL = 100, 110, 0.9


def tissue(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """HU and echogenicity (grey) of one body: vessels bright in the one and dark in the other, organs unrelated."""
    rng = np.random.default_rng(seed)
    organs, vessels = (gaussian_filter(rng.normal(0, 1, SHAPE), s) for s in (5.0, 1.6))
    organ, vessel = organs > 0.3 * organs.std(), vessels > 1.7 * vessels.std()
    hu = np.where(vessel, 160.0, np.where(organ, 100.0, 50.0))
    grey = np.where(vessel, 25.0, np.where(organ, 95.0, 120.0))
    return gaussian_filter(hu, 0.6), gaussian_filter(grey, 0.6)


HU, GREY = tissue(1)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """One compilation, with the types that the command has."""
    for spec in KERNELS:
        spec.compile()


def ct(hu: NDArray[np.float64] = HU) -> Volume:
    return Volume.of(np.rint(hu + np.random.default_rng(9).normal(0, 10, SHAPE)).astype(np.int16), GRID)


def ras_from_reference() -> NDArray[np.float64]:
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", [20, -130, 45], degrees=True).as_matrix()
    out[:3, 3] = 300.0, -120.0, 80.0
    return out


def poses(count: int) -> NDArray[np.float64]:
    """(n, 4, 4) pixel to RAS: a fan through the body."""
    out = np.zeros((count, 4, 4))
    for n, angle in enumerate(np.linspace(-22, 22, count)):
        turn = Rotation.from_euler("x", angle, degrees=True).as_matrix()
        out[n, :3, :3] = turn @ np.array([[PIXEL, 0, 0], [0, 0, -1.0], [0, PIXEL, 0]])
        out[n, :3, 3] = np.array([0.0, 4.0, -45.0]) + turn @ np.array([-49.0, 3.0 * np.sin(n), 0.0])
        out[n, 3, 3] = 1.0
    return out


Motion = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def sweep(
    count: int = 16, grey: NDArray[np.float64] = GREY, seed: int = 2, motion: Motion | None = None
) -> TrackedFrames:
    """Speckle, gain falling with depth, a shadow, and a black frame around the fan.

    ``motion``: (..., 3) RAS mm to where the tissue seen there lies in the CT.
    """
    rng = np.random.default_rng(seed)
    row, column = np.indices((ROWS, COLUMNS))
    pixels = np.stack([column, row, 0 * row, np.ones_like(row)], -1).astype(float)
    images = []
    for matrix in poses(count):
        places = pixels @ matrix.T
        if motion is not None:
            places[..., :3] = motion(places[..., :3])
        index = places @ np.linalg.inv(GRID).T
        value = map_coordinates(grey, index[..., 2::-1].transpose(2, 0, 1), order=3, mode="nearest")
        speckle = np.hypot(*(gaussian_filter(rng.normal(0, 1, value.shape), 0.6) for _ in (0, 1)))
        value = value * (0.6 + 0.4 * speckle / speckle.mean()) * (1.1 - 0.4 * row / ROWS)
        value[(np.abs(column - 30) < 6) & (row > 20)] *= 0.15
        value[np.abs(column - COLUMNS / 2) > 25 + 0.4 * row] = 0.0
        images.append(np.clip(value, 0, 255))
    return TrackedFrames.of(np.rint(images).astype(np.uint8), np.linalg.inv(ras_from_reference()) @ poses(count))


SWEEP = sweep(30)


def start(millimetres: float, degrees: float, seed: int = 4) -> Rigid:
    rng = np.random.default_rng(seed)
    direction, axis = (v / np.linalg.norm(v) for v in rng.normal(0, 1, (2, 3)))
    off = np.eye(4)
    off[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    off[:3, 3] = millimetres * direction
    return Rigid.from_matrix(off @ ras_from_reference(), NAME)


def points() -> NDArray[np.float64]:
    pixels = np.array([[c, r, 0, 1.0] for c in (40, 70) for r in (20, 50, 80)])
    return (poses(16)[::5] @ pixels.T)[:, :3].transpose(0, 2, 1).reshape(-1, 3)


def errors_mm(result: UltrasoundRegistration) -> NDArray[np.float64]:
    there = Rigid.from_matrix(ras_from_reference(), NAME).inverse().apply(points())
    return np.asarray(np.linalg.norm(result.transform.apply(there) - points(), axis=1))


def test_a_sweep_comes_home_and_says_how_well_the_same_on_any_number_of_threads() -> None:
    before = numba.get_num_threads()
    found = []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            found.append(register_ultrasound(ct(), SWEEP, initial=start(10.0, 8.0)))
    finally:
        numba.set_num_threads(before)
    result = found[0]
    assert result.verdict is Verdict.GOOD, result.reasons
    assert errors_mm(result).max() < 1.0
    stated = result.expected_error_mm(points())
    assert errors_mm(result).mean() < stated.mean() < 5.0
    assert result.similarity_before < 0.7 * result.similarity_after
    assert result.agreement > 0.15
    assert result.transform.name.wire == NAME
    assert np.array_equal(found[1].transform.matrix, result.transform.matrix)
    assert np.array_equal(found[1].expected_error_mm(points()), stated)


@pytest.mark.parametrize("wrong", ["another patient", "mirrored", "far off"])
def test_what_is_wrong_is_never_called_good(wrong: str) -> None:
    image, at = ct(), start(4.0, 3.0)
    if wrong == "another patient":
        image = ct(tissue(5)[0])
    elif wrong == "mirrored":
        image = Volume.of(np.ascontiguousarray(image.array[:, :, ::-1]), GRID)
    else:
        at = start(40.0, 20.0)
    result = register_ultrasound(image, SWEEP, initial=at)
    assert result.verdict is not Verdict.GOOD
    assert any("standard deviations" in reason or "halves" in reason for reason in result.reasons)


def test_one_interface_explained_well_does_not_make_it_good() -> None:
    """A gas pocket in a corner of the frames is where the CT has it, and nothing else is (10.8 if it were counted)."""
    hu, grey = HU.copy(), tissue(5)[1]
    k, j, i = np.indices(SHAPE)
    away = np.sqrt((2.0 * (i - 26)) ** 2 + (2.0 * (j - 36)) ** 2 + (2.0 * (k - 20)) ** 2)
    hu[away < 11.0] = -800.0
    grey[np.abs(away - 11.0) < 2.0] = 255.0
    grey[away < 9.0] = 5.0
    result = register_ultrasound(ct(hu), sweep(grey=grey), initial=start(1.0, 1.0))
    assert result.evidence < 3.0
    assert result.verdict is not Verdict.GOOD


def test_the_stated_error_grows_where_little_stands_out() -> None:
    result = register_ultrasound(ct(), SWEEP, initial=start(2.0, 1.0))
    weak = replace(result, evidence=2.0)
    assert (weak.expected_error_mm(points()) > result.expected_error_mm(points()) + 1.0).all()
    assert (result.expected_error_mm(points(), 0.5) < result.expected_error_mm(points())).all()


def test_a_compounded_volume_is_taken_plane_by_plane() -> None:
    volume = compound(sweep(60), np.arange(60), ras_from_reference(), 1.0)
    assert volume.array.dtype == np.uint8
    assert 0.1 < (volume.array > 0).mean() < 0.9
    initial = Rigid.from_matrix(start(5.0, 4.0).matrix @ np.linalg.inv(ras_from_reference()), NAME)
    result = register_ultrasound(ct(), planes_of_volume(volume), initial=initial)
    assert np.linalg.norm(result.transform.apply(points()) - points(), axis=1).max() < 1.5


def test_a_mask_keeps_the_rest_of_the_ct_out() -> None:
    spoilt = ct().array.copy()
    spoilt[:, :, :20] = np.random.default_rng(3).integers(-100, 200, spoilt[:, :, :20].shape)
    mask = np.ones(SHAPE, np.uint8)
    mask[:, :, :21] = 0
    result = register_ultrasound(Volume.of(spoilt, GRID), SWEEP, initial=start(5.0, 4.0), fixed_mask=mask)
    assert errors_mm(result).max() < 1.5
    assert result.overlap < 0.99


def test_frames_are_chosen_for_structure_and_spread() -> None:
    count = 50
    frames = sweep(count)
    images = frames.images.copy()
    images[10:20] = np.where(images[10:20] > 0, 3, 0)  # no contact
    chosen = choose_frames(TrackedFrames.of(images, frames.reference_from_pixel, frames.mask), 10)
    assert len(chosen) == 10
    assert not set(chosen.tolist()) & set(range(10, 20))
    assert chosen.min() < 5
    assert chosen.max() > 44
    assert np.diff(chosen).min() >= 2


def test_the_fan_is_what_changes() -> None:
    images = SWEEP.images.copy()
    images[:, :6, :20] = 200  # a logo
    found = TrackedFrames.of(images, SWEEP.reference_from_pixel).mask
    assert not found[:6, :20].any()
    assert found[50, 55] == 1
    assert found[50, 2] == 0


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        ("constant frames", "constant"),
        ("lost poses", "tool was lost"),
        ("two calibrations", "same calibration"),
        ("no frames", "none empty"),
        ("elsewhere", "does not lie in the CT"),
        ("constant CT", "CT is constant"),
        ("NaN", "not finite"),
        ("empty mask", "mask is empty"),
        ("another grid", "resample"),
        ("no structure", "patches"),
    ],
)
def test_what_cannot_be_registered_is_named(spoil: str, text: str) -> None:
    images, matrices = SWEEP.images.copy(), SWEEP.reference_from_pixel.copy()
    image, at, mask, fan = ct(), start(1.0, 1.0), None, SWEEP.mask
    match spoil:
        case "constant frames":
            images[:], fan = 60, None
        case "lost poses":
            matrices[2] = np.nan
        case "two calibrations":
            matrices[1, :3, 0] *= 2
        case "no frames":
            images, matrices = images[:0], matrices[:0]
        case "elsewhere":
            at = Rigid.identity(NAME)
        case "constant CT":
            image = Volume.of(np.zeros(SHAPE, np.int16), GRID)
        case "NaN":
            image = Volume.of(np.where(image.array > 150, np.nan, image.array).astype(np.float32), GRID)
        case "empty mask":
            mask = np.zeros(SHAPE, np.uint8)
        case "another grid":
            mask = np.ones((3, 3, 3), np.uint8)
        case "no structure":
            images[:] = 60
    with pytest.raises(ImageRegistrationError, match=text):
        register_ultrasound(image, TrackedFrames.of(images, matrices, fan), initial=at, fixed_mask=mask)


def test_progress_is_told_and_can_end_it() -> None:
    def tell(share: float, _text: str) -> None:
        if share > 0.05:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        register_ultrasound(ct(), SWEEP, initial=start(1.0, 1.0), progress=tell)
