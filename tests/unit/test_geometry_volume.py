"""Volumes on a RAS, LAS, LPS and an oblique grid: indices and mm, letters, grids that agree."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.geometry.volume import Volume, VolumeError, orientation_letters

SPACING = np.array([0.7, 0.8, 2.5])
ORIGIN = np.array([-30.0, 12.0, 5.5])
DIRECTIONS = {
    "RAS": np.eye(3),
    "LAS": np.diag([-1.0, 1.0, 1.0]),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "oblique": Rotation.from_euler("ZYX", [20, -15, 35], degrees=True).as_matrix(),
}


def affine(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    m = np.eye(4)
    m[:3, :3] = direction * SPACING
    m[:3, 3] = ORIGIN
    return m


@pytest.fixture(params=list(DIRECTIONS))
def volume(request: pytest.FixtureRequest) -> Volume:
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)  # k, j, i
    return Volume.of(array, affine(DIRECTIONS[request.param]))


def test_index_and_ras_are_inverse(volume: Volume) -> None:
    index = np.array([[0.0, 0.0, 0.0], [5.0, 4.0, 3.0], [2.5, 1.25, -7.0]])
    np.testing.assert_allclose(volume.to_index(volume.to_ras(index)), index, atol=1e-9)
    np.testing.assert_allclose(volume.to_ras([0, 0, 0]), ORIGIN)
    step = volume.to_ras([0, 0, 1]) - volume.to_ras([0, 0, 0])
    np.testing.assert_allclose(step, volume.ras_from_index[:3, 2])


def test_spacing_size_and_voxel(volume: Volume) -> None:
    np.testing.assert_allclose(volume.spacing_mm, SPACING)
    assert volume.size == (6, 5, 4)
    assert volume.voxel_volume_mm3 == pytest.approx(SPACING.prod())


def test_centre_and_corners(volume: Volume) -> None:
    corners = volume.corners_ras()
    assert corners.shape == (8, 3)
    np.testing.assert_allclose(corners.mean(axis=0), volume.centre_ras(), atol=1e-9)
    np.testing.assert_allclose(volume.to_index(corners).max(axis=0), [5, 4, 3], atol=1e-9)


def test_voxel_under_a_point(volume: Volume) -> None:
    i, j, k = np.rint(volume.to_index(volume.to_ras([3, 2, 1]))).astype(int)
    assert volume.array[k, j, i] == 1 * 30 + 2 * 6 + 3


def test_the_same_place_on_flipped_grids_is_the_same_grid_only_with_the_same_axes(volume: Volume) -> None:
    again = Volume.of(np.zeros((4, 5, 6), np.uint8), volume.ras_from_index + 1e-5 * np.eye(4, 4, 3))
    assert volume.same_grid_as(again)
    flipped = volume.ras_from_index @ np.array([[-1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert not volume.same_grid_as(Volume.of(volume.array, flipped))
    assert not volume.same_grid_as(Volume.of(np.zeros((4, 5, 7), np.uint8), volume.ras_from_index))


def test_array_is_read_only_and_contiguous(volume: Volume) -> None:
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        volume.ras_from_index[0, 0] = 1
    turned = Volume.of(np.zeros((6, 5, 4), np.int16).transpose(2, 1, 0), np.eye(4))
    assert turned.array.flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "matrix", "words"),
    [
        (np.zeros((4, 5), np.int16), np.eye(4), "three non-empty axes"),
        (np.zeros((4, 0, 5), np.int16), np.eye(4), "three non-empty axes"),
        (np.zeros((2, 2, 2), np.int16), np.eye(3), "affine"),
        (np.zeros((2, 2, 2), np.int16), np.diag([1, 1, np.nan, 1]), "affine"),
        (np.zeros((2, 2, 2), np.int16), np.diag([1.0, 1, 0, 1]), "singular"),
        (np.zeros((2, 2, 2), np.int16), np.eye(4)[[0, 0, 2, 3]], "singular"),
    ],
)
def test_refused(array: NDArray[np.int16], matrix: NDArray[np.float64], words: str) -> None:
    with pytest.raises(VolumeError, match=words):
        Volume.of(array, matrix)


@pytest.mark.parametrize(
    ("direction", "letters"),
    [
        ([1, 0, 0], "R"),
        ([-1, 0, 0], "L"),
        ([0, 1, 0], "A"),
        ([0, -3, 0], "P"),
        ([0, 0, 1], "S"),
        ([0, 0, -1], "I"),
        ([0.6, 0.5, 0.1], "RA"),
        ([0.3, 0.1, -0.9], "I"),
        ([-0.5, 0.6, -0.55], "AIL"),
        ([0, 0, 0], ""),
    ],
)
def test_letters(direction: list[float], letters: str) -> None:
    assert orientation_letters(direction) == letters
