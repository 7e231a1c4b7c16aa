"""The reslice kernels against plain-Python twins."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from nav.geometry.volume import Volume
from nav.imaging.planes import PlaneAxes, plane_matrix
from nav.imaging.reslice import reslice_labels, reslice_plane, sample_points


def trilinear(volume: NDArray[np.generic], i: float, j: float, k: float) -> float | None:
    """Value at a continuous index; None outside the voxels' outer borders."""
    at = (k, j, i)
    if any(c < -0.5 or c > n - 0.5 for c, n in zip(at, volume.shape, strict=True)):
        return None
    clamped = [min(max(c, 0.0), n - 1.0) for c, n in zip(at, volume.shape, strict=True)]
    low = [min(math.floor(c), max(n - 2, 0)) for c, n in zip(clamped, volume.shape, strict=True)]
    total = 0.0
    for corner in itertools.product((0, 1), repeat=3):
        weight, index = 1.0, []
        for c, lo, bit, n in zip(clamped, low, corner, volume.shape, strict=True):
            weight *= (c - lo) if bit else 1.0 - (c - lo)
            index.append(min(lo + bit, n - 1))
        total += weight * float(volume[tuple(index)])
    return total


def reslice_twin(
    volume: Volume, ras_from_pixel: NDArray[np.float64], w: int, h: int, window: float, level: float
) -> NDArray[np.float64]:
    """Grey values before truncation; NaN outside."""
    out = np.full((h, w), np.nan)
    m = np.linalg.inv(volume.ras_from_index) @ ras_from_pixel
    for y, x in itertools.product(range(h), range(w)):
        i, j, k, _ = m @ (x, y, 0.0, 1.0)
        value = trilinear(volume.array, i, j, k)
        if value is not None:
            out[y, x] = min(max((value - (level - window / 2)) * 254.0 / window + 1.0, 1.0), 255.0)
    return out


def random_axes(rng: np.random.Generator) -> PlaneAxes:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return PlaneAxes(q[:, 0], q[:, 1])


SHAPES = [(9, 11, 13), (1, 7, 8), (6, 1, 5), (5, 4, 1), (1, 1, 1), (2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_linear_agrees_with_twin(shape: tuple[int, int, int], dtype: type) -> None:
    rng = np.random.default_rng(shape[0] * 31 + shape[2])
    for _ in range(4):
        array = (
            rng.integers(0, 250, shape).astype(dtype)
            if dtype is np.uint8
            else (rng.integers(-1000, 1500, shape).astype(dtype))
        )
        affine = np.eye(4)
        q, _r = np.linalg.qr(rng.normal(size=(3, 3)))
        affine[:3, :3] = q * rng.uniform(0.5, 3.0, 3)
        affine[:3, 3] = rng.uniform(-50, 50, 3)
        volume = Volume.of(array, affine)
        m = plane_matrix(random_axes(rng), volume.centre_ras(), 23, 17, float(rng.uniform(0.4, 1.5)))
        window, level = (250.0, 120.0) if dtype is np.uint8 else (1800.0, 200.0)
        got = reslice_plane(volume, m, 23, 17, window, level)
        want = reslice_twin(volume, m, 23, 17, window, level)
        outside = np.isnan(want)
        assert (~outside).sum() >= 1
        assert np.array_equal(got == 0, outside)
        assert np.abs(got[~outside] - want[~outside]).max() <= 0.51  # rounding to whole grey values


def test_planes_along_the_grid_hit_voxels_exactly() -> None:
    """On voxel centres nothing is interpolated: every grey value is the voxel's own."""
    rng = np.random.default_rng(5)
    array = rng.integers(0, 255, (4, 6, 8)).astype(np.uint8)
    volume = Volume.of(array, np.eye(4))
    for k in range(4):
        m = np.eye(4)
        m[2, 3] = k
        assert np.array_equal(reslice_plane(volume, m, 8, 6, 254.0, 127.0), np.maximum(array[k] + 1, 1))
        assert np.array_equal(reslice_labels(volume, m, 8, 6), array[k])


def test_plane_that_misses_is_all_outside() -> None:
    volume = Volume.of(np.full((3, 3, 3), 1000, np.int16), np.eye(4))
    m = np.eye(4)
    m[2, 3] = 2.51
    out = np.full((5, 7), 9, np.uint8)
    assert reslice_plane(volume, m, 7, 5, 400.0, 40.0, out) is out
    assert not out.any()


def test_nearest_agrees_with_twin() -> None:
    rng = np.random.default_rng(3)
    array = rng.integers(1, 200, (5, 6, 7)).astype(np.uint8)
    volume = Volume.of(array, np.diag([1.0, 1.5, 2.0, 1.0]))
    m = plane_matrix(random_axes(rng), volume.centre_ras(), 21, 19, 0.613)
    got = reslice_labels(volume, m, 21, 19)
    inverse = np.linalg.inv(volume.ras_from_index) @ m
    for y, x in itertools.product(range(19), range(21)):
        i, j, k = (math.floor(c + 0.5) for c in (inverse @ (x, y, 0.0, 1.0))[:3])
        inside = 0 <= i < 7 and 0 <= j < 6 and 0 <= k < 5
        assert got[y, x] == (array[k, j, i] if inside else 0)


def test_point_values_agree_with_twin() -> None:
    rng = np.random.default_rng(4)
    volume = Volume.of(rng.integers(-1000, 1000, (5, 1, 7)).astype(np.int16), np.diag([-1.0, 2.0, 1.5, 1.0]))
    points = rng.uniform((-9, -2, -2), (2, 2, 9), (200, 3))
    got = sample_points(volume, points)
    for value, (i, j, k) in zip(got, volume.to_index(points), strict=True):
        want = trilinear(volume.array, i, j, k)
        assert math.isnan(value) if want is None else value == pytest.approx(want, abs=1e-9)
    assert np.isnan(got).any()
    assert np.isfinite(got).any()


@pytest.mark.parametrize(
    ("window", "dtype", "shape", "what"),
    [(0.0, np.int16, (4, 4), "window"), (10.0, np.float32, (4, 4), "dtype"), (10.0, np.int16, (4, 5), "shape")],
)
def test_bad_input_is_named(window: float, dtype: type, shape: tuple[int, int], what: str) -> None:
    volume = Volume.of(np.zeros((2, 2, 2), dtype), np.eye(4))
    with pytest.raises(ValueError, match=what):
        reslice_plane(volume, np.eye(4), 4, 4, window, 0.0, np.empty(shape, np.uint8))
