"""The kernels of image pyramids and of the rigid registration against plain NumPy twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from nav.geometry.volume import Volume
from nav.registration import rigid_kernels as kernels
from nav.registration.pyramid import image_pyramid, mask_at

NONE = np.zeros((0, 0, 0), np.uint8)


def image(seed: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(16, 17, 18), (40, 33, 16), (8, 8, 8)])
def test_every_level_is_the_mean_over_its_blocks(shape: tuple[int, int, int]) -> None:
    array = image(1, shape)
    volume = Volume.of(array, np.diag([1.0, 1.0, 2.0, 1.0]))
    levels = image_pyramid(volume, 4.0)
    assert np.array_equal(levels[0].volume.array, array)
    assert len(levels) == (3 if min(shape) > 31 else 2 if min(shape) >= 16 else 1)
    for level in levels[1:]:
        fi, fj, fk = level.factors
        nk, nj, ni = (n // f for n, f in zip(shape, (fk, fj, fi), strict=True))
        blocks = array[: nk * fk, : nj * fj, : ni * fi].reshape(nk, fk, nj, fj, ni, fi)
        np.testing.assert_allclose(level.volume.array, blocks.mean(axis=(1, 3, 5)), atol=1e-3)
        # The centre of its first voxel is the mean of the centres it covers.
        corners = np.stack(np.meshgrid(*[np.arange(f) for f in (fi, fj, fk)], indexing="ij"), -1).reshape(-1, 3)
        np.testing.assert_allclose(level.volume.ras_from_index[:3, 3], volume.to_ras(corners).mean(axis=0), atol=1e-9)


def test_levels_become_isotropic() -> None:
    levels = image_pyramid(Volume.of(np.zeros((40, 128, 128), np.int16), np.diag([0.6, 0.6, 2.4, 1.0])), 9.0)
    assert [tuple(level.factors) for level in levels] == [(1, 1, 1), (2, 2, 1), (4, 4, 1), (8, 8, 2), (16, 16, 4)]
    assert levels[2].pitch_mm == pytest.approx(2.4)


def test_nan_stays_where_it_is() -> None:
    array = image(2, (16, 16, 16))
    array[3, 4, 5] = np.nan
    level = image_pyramid(Volume.of(array, np.eye(4)), 2.0)[1]
    assert np.argwhere(np.isnan(level.volume.array)).tolist() == [[1, 2, 2]]


def test_a_mask_follows_its_image() -> None:
    mask = np.zeros((16, 18, 20), np.uint8)
    mask[4:8, 6:10, 10:14] = 7
    level = image_pyramid(Volume.of(image(3, mask.shape), np.eye(4)), 2.0)[1]
    small = mask_at(mask, level)
    assert small.shape == level.volume.array.shape
    assert np.array_equal(np.argwhere(small).min(0), [2, 3, 5])
    assert np.array_equal(np.argwhere(small).max(0), [3, 4, 6])


def strongest_twin(
    array: NDArray[np.float32], mask: NDArray[np.uint8], cell: tuple[int, int, int], turn: NDArray[np.float32]
) -> list[tuple[tuple[int, int, int], float] | None]:
    gradient = np.zeros((*array.shape, 3))
    inner = (slice(1, -1),) * 3
    for axis, of in ((0, 2), (1, 1), (2, 0)):
        if array.shape[of] > 2:
            gradient[..., axis] = np.gradient(array.astype(np.float64), axis=of)  # central inside
    size = np.full(array.shape, -1.0)
    size[inner] = np.linalg.norm(gradient @ turn.T, axis=-1)[inner]
    if mask.size:
        size[mask == 0] = -1.0
    found: list[tuple[tuple[int, int, int], float] | None] = []
    nk, nj, ni = array.shape
    for k in range(0, nk, cell[0]):
        for j in range(0, nj, cell[1]):
            for i in range(0, ni, cell[2]):
                # Every other row of a large cell, from the first that is not at the border.
                rows = range(max(k, 1), min(k + cell[0], nk), 2 if cell[0] >= 4 else 1)
                columns = range(max(j, 1), min(j + cell[1], nj), 2 if cell[1] >= 4 else 1)
                places = [(a, b, c) for a in rows for b in columns for c in range(i, min(i + cell[2], ni))]
                there = max(places, key=lambda place: size[place], default=None)
                found.append((there, float(size[there])) if there is not None and size[there] > 0 else None)
    return found


@pytest.mark.parametrize("shape", [(9, 10, 11), (3, 3, 3), (2, 8, 8), (1, 1, 1)])
@pytest.mark.parametrize("cell", [(1, 1, 1), (2, 3, 4), (20, 20, 20)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_strongest_gradient_of_every_cell(
    shape: tuple[int, int, int], cell: tuple[int, int, int], masked: bool
) -> None:
    array, turn = image(4, shape), np.random.default_rng(20).normal(0, 1, (3, 3)).astype(np.float32)
    mask = (np.random.default_rng(5).random(shape) < 0.3).astype(np.uint8) if masked else NONE
    wanted = strongest_twin(array, mask, cell, turn)
    positions = np.full((len(wanted), 3), 9.0, np.float32)
    values, gradients = np.full(len(wanted), 9.0, np.float32), np.full((len(wanted), 4), 9.0, np.float32)
    kernels.strongest_gradients(array, mask, np.array(cell), turn, positions, values, gradients)
    for n, want in enumerate(wanted):
        if want is None:
            assert not gradients[n].any()
            continue
        (k, j, i), size = want
        assert positions[n].tolist() == [i, j, k]
        assert values[n] == array[k, j, i]
        assert np.linalg.norm(gradients[n, :3]) == pytest.approx(size, rel=1e-4)
        assert gradients[n, 3] == pytest.approx(size**2, rel=1e-4)


def test_a_nan_is_never_the_strongest() -> None:
    array = image(6, (6, 6, 6))
    array[2, 2, 2] = np.nan
    positions, values, gradients = (np.zeros(s, np.float32) for s in ((27, 3), 27, (27, 4)))
    turn = np.eye(3, dtype=np.float32)
    kernels.strongest_gradients(array, NONE, np.array([2, 2, 2]), turn, positions, values, gradients)
    assert np.isfinite(gradients).all()


def samples(seed: int, n: int, shape: tuple[int, int, int]) -> tuple[NDArray[np.float32], ...]:
    rng = np.random.default_rng(seed)
    positions = (rng.random((n, 3)) * (np.array(shape[::-1]) + 4.0) - 2.0).astype(np.float32)
    return positions, rng.normal(0, 100, n).astype(np.float32), rng.normal(0, 10, (n, 6)).astype(np.float32)


def tilted() -> NDArray[np.float32]:
    index = np.eye(4)
    index[:3, :3] += np.random.default_rng(8).normal(0, 0.05, (3, 3))
    index[:3, 3] = 0.3, -0.2, 0.4
    return index.astype(np.float32)


def normal_twin(
    positions: NDArray[np.float32],
    values: NDArray[np.float32],
    jacobian: NDArray[np.float32],
    moving: NDArray[np.float32],
    mask: NDArray[np.uint8],
    index: NDArray[np.float32],
    scale: float,
    offset: float,
    robust: float,
) -> NDArray[np.float64]:
    out = np.zeros((kernels.BLOCKS, kernels.SUMS))
    n = len(values)
    for block in range(kernels.BLOCKS):
        rows = slice(n * block // kernels.BLOCKS, n * (block + 1) // kernels.BLOCKS)
        at = positions[rows].astype(np.float64) @ index[:3, :3].T + index[:3, 3]
        with np.errstate(invalid="ignore"):
            inside = ((at >= 0) & (at < np.array(moving.shape[::-1]) - 1)).all(axis=1)
        if mask.size:
            nearest = (at[inside] + 0.5).astype(int)
            inside[inside] = mask[nearest[:, 2], nearest[:, 1], nearest[:, 0]] != 0
        m = map_coordinates(moving, at[inside][:, ::-1].T, order=1, output=np.float64)
        r = scale * m + offset - values[rows][inside]
        w = 1.0 / np.sqrt(1.0 + r * r * robust)
        v = np.column_stack([jacobian[rows][inside], m, np.ones(len(m))])
        out[block, :64] = ((v * w[:, None]).T @ v).ravel()
        out[block, 64:72] = (v * w[:, None]).T @ r
        out[block, 72], out[block, 73] = (w * r * r).sum(), len(m)
    return out


@pytest.mark.parametrize("n", [0, 1, 63, 1000])
@pytest.mark.parametrize("robust", [0.0, 1e-4])
@pytest.mark.parametrize("masked", [False, True])
def test_the_normal_equations(n: int, robust: float, masked: bool) -> None:
    moving = image(7, (7, 9, 8))
    mask = (np.random.default_rng(9).random(moving.shape) < 0.6).astype(np.uint8) if masked else NONE
    positions, values, jacobian = samples(10, n, moving.shape)
    out = np.full((kernels.BLOCKS, kernels.SUMS), 9.0)
    index = tilted()
    kernels.normal_equations(
        positions, values, jacobian, moving, mask, index, np.float32(1.1), np.float32(-5), np.float32(robust), out
    )
    twin = normal_twin(positions, values, jacobian, moving, mask, index, 1.1, -5.0, robust)
    assert np.array_equal(out[:, 73], twin[:, 73])
    np.testing.assert_allclose(out.sum(0), twin.sum(0), rtol=1e-4, atol=1e-3 * np.abs(twin.sum(0)).max())
    assert n < 1000 or twin[:, 73].sum() > 100


def test_samples_that_are_not_numbers_are_outside() -> None:
    moving = image(7, (7, 9, 8))
    positions, values, jacobian = samples(10, 200, moving.shape)
    positions[::2, 1] = np.nan
    out = np.empty((kernels.BLOCKS, kernels.SUMS))
    one, nil = np.float32(1), np.float32(0)
    kernels.normal_equations(positions, values, jacobian, moving, NONE, np.eye(4, dtype=np.float32), one, nil, nil, out)
    assert np.isfinite(out).all()
    assert 0 < out[:, 73].sum() <= 100


def patch_twin(
    fixed: NDArray[np.float32], moving: NDArray[np.float32], index: NDArray[np.float32], side: list[int], least: float
) -> NDArray[np.float64]:
    out = np.full([-(-n // s) for n, s in zip(fixed.shape, side, strict=True)], np.nan)
    k, j, i = np.indices(fixed.shape)
    at = np.stack([i, j, k], -1) @ index[:3, :3].T + index[:3, 3]
    inside = ((at >= 0) & (at < np.array(moving.shape[::-1]) - 1)).all(axis=-1)
    m = map_coordinates(moving, at[..., ::-1].transpose(3, 0, 1, 2), order=1, output=np.float64)
    for place in np.ndindex(*out.shape):
        part = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, side, strict=True))
        a, b = fixed[part][inside[part]].astype(np.float64), m[part][inside[part]]
        if len(a) == 0 or 2 * len(a) < math.prod(side) or a.var() < least:
            continue
        out[place] = 0.0 if b.var() <= 1e-9 * a.var() else np.corrcoef(a, b)[0, 1]
    return out


@pytest.mark.parametrize("side", [[2, 2, 2], [3, 4, 5], [20, 20, 20]])
def test_the_agreement_of_patches(side: list[int]) -> None:
    fixed, moving = image(11, (9, 10, 12)), image(12, (8, 11, 10))
    fixed[:4, :4, :4] = 5.0  # no structure
    moving[6:, 6:, 6:] = 1.0  # none here where the other has some
    index = tilted()
    out = np.full([-(-n // s) for n, s in zip(fixed.shape, side, strict=True)], 9.0)
    kernels.patch_correlations(fixed, NONE, moving, NONE, index, np.array(side), 1.0, out)
    twin = patch_twin(fixed, moving, index, side, 1.0)
    np.testing.assert_allclose(out, twin, atol=2e-4, equal_nan=True)
    assert np.isnan(twin).any() or side[0] > 3


def test_patches_are_masked_on_either_side() -> None:
    fixed = image(13, (8, 8, 8))
    mask = np.ones(fixed.shape, np.uint8)
    mask[:4] = 0
    eye = np.eye(4, dtype=np.float32)
    for masks in ((mask, NONE), (NONE, mask)):
        out = np.empty((2, 2, 2))
        kernels.patch_correlations(fixed, masks[0], fixed, masks[1], eye, np.array([4, 4, 4]), 1.0, out)
        assert np.isnan(out[0]).all()
        np.testing.assert_allclose(out[1, 0, 0], 1.0, atol=1e-6)
