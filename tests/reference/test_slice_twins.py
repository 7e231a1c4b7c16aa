"""The kernels of slice to volume registration against plain NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from nav.registration import slice_deform_kernels as deform
from nav.registration import slice_kernels as kernels

Array = NDArray[np.float64]
SHAPE = (7, 9, 8)


def image(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)


def frozen(array: NDArray[np.float32]) -> NDArray[np.float32]:
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("offsets", [[[0, 0, 0]], [[-1, 0, 0], [0, 0, 0], [1, 0, 0]], [[2, -1, 3], [0, 1, -4]]])
def test_the_slab_mean(shape: tuple[int, int, int], offsets: list[list[int]]) -> None:
    source = frozen(image(1, shape))
    weights = np.arange(1.0, len(offsets) + 1.0).astype(np.float32)
    weights /= weights.sum()
    out = np.full(shape, 9.0, np.float32)
    kernels.slab_mean(source, np.array(offsets), weights, out)
    twin = np.zeros(shape)
    for place in np.ndindex(*shape):
        for offset, weight in zip(offsets, weights, strict=True):
            at = tuple(min(max(p + o, 0), n - 1) for p, o, n in zip(place, offset, shape, strict=True))
            twin[place] += weight * source[at]
    np.testing.assert_allclose(out, twin, atol=1e-3)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_levels_of_slices_are_means_of_what_is_known(factor: int) -> None:
    slices, known = image(2, (2, 7, 8)), (np.random.default_rng(3).random((2, 7, 8)) < 0.5).astype(np.uint8)
    known[0, :factor, :factor] = 0
    out = np.full((2, 7 // factor, 8 // factor), 9.0, np.float32)
    kernels.slice_level(frozen(slices), known, factor, out)
    for k, j, i in np.ndindex(*out.shape):
        part = (k, slice(j * factor, (j + 1) * factor), slice(i * factor, (i + 1) * factor))
        there = slices[part][known[part] != 0]
        if 2 * len(there) < factor**2 or len(there) == 0:
            assert np.isnan(out[k, j, i])
        else:
            assert out[k, j, i] == pytest.approx(there.mean(), abs=1e-3)
    assert np.isnan(out[0, 0, 0])


def looked_up(volume: NDArray[np.float32], at: Array) -> tuple[NDArray[np.bool_], Array, Array]:
    """Which of (n, 3) places (i, j, k) are inside; value and gradient per voxel there, of trilinear interpolation."""
    with np.errstate(invalid="ignore"):
        inside = ((at >= 0) & (at < np.array(volume.shape[::-1]) - 1)).all(axis=1)
    here = at[inside]

    def value(places: Array) -> Array:
        return np.asarray(map_coordinates(volume, places[:, ::-1].T, order=1, output=np.float64))

    gradient = np.empty((len(here), 3))
    for axis in range(3):
        low, high = here.copy(), here.copy()
        low[:, axis] = np.floor(here[:, axis])
        high[:, axis] = low[:, axis] + 1.0
        gradient[:, axis] = value(high) - value(low)
    return inside, value(here), gradient


def samples(seed: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    points = (rng.random((n, 3)) * (np.array(SHAPE[::-1]) + 2.0) - 0.5 * np.array(SHAPE[::-1]) - 1.0).astype(np.float32)
    return points, rng.normal(0, 100, n).astype(np.float32)


def placed() -> tuple[Array, Array]:
    """A volume's (4, 4) and a pose (3, 4) that lays points about 0 around its middle."""
    grid = np.diag([1.1, 0.9, 1.3, 1.0])
    grid[:3, 3] = -3.0, 5.0, 2.0
    pose = np.zeros((3, 4))
    pose[:, :3] = Rotation.from_euler("xyz", [4, -6, 8], degrees=True).as_matrix()
    pose[:, 3] = grid[:3, :3] @ ((np.array(SHAPE[::-1]) - 1) / 2.0) + grid[:3, 3]
    return np.linalg.inv(grid), pose


def sums_twin(
    points: NDArray[np.float32], values: NDArray[np.float32], volume: NDArray[np.float32], index: Array, pose: Array,
    intensity: Array,
) -> Array:  # fmt: skip
    whole = (index @ np.vstack([pose, [0, 0, 0, 1.0]]))[:3].astype(np.float32).astype(np.float64)
    p = points.astype(np.float64)
    inside, m, gradient = looked_up(volume, p @ whole[:, :3].T + whole[:, 3])
    p, force = p[inside], gradient @ whole[:, :3]
    r = intensity[0] * m + intensity[1] - values[inside]
    w = 1.0 / (1.0 + r * r * intensity[2])
    u = np.column_stack([force, np.cross(p, force), m, np.ones(len(m)), r])
    return np.concatenate([((u * w[:, None]).T @ u).ravel(), [len(m), (w * w).sum()]])


@pytest.mark.parametrize("n", [0, 1, 63, 700])
@pytest.mark.parametrize("robust", [0.0, 1e-4])
def test_the_normal_equations(n: int, robust: float) -> None:
    volume, (points, values), (index, pose) = frozen(image(4)), samples(5, n), placed()
    intensity = np.array([1.1, -5.0, robust])
    out = np.full((kernels.BLOCKS, kernels.SUMS), 9.0)
    kernels.block_sums(points, values, volume, index, pose, intensity, out)
    for block in range(kernels.BLOCKS):
        part = slice(n * block // kernels.BLOCKS, n * (block + 1) // kernels.BLOCKS)
        twin = sums_twin(points[part], values[part], volume, index, pose, intensity)
        np.testing.assert_allclose(out[block], twin, rtol=1e-3, atol=1e-3 * max(np.abs(twin).max(), 1e-6))
    assert n < 700 or out[:, kernels.COUNT].sum() > 100


def test_what_is_not_a_number_is_left_out() -> None:
    volume, (points, values), (index, pose) = image(4), samples(5, 400), placed()
    intensity, out = np.array([1.0, 0.0, 0.0]), np.empty((kernels.BLOCKS, kernels.SUMS))
    kernels.block_sums(points, values, frozen(volume.copy()), index, pose, intensity, out)
    all_of_them = out[:, kernels.COUNT].sum()
    volume[3, 4, 4] = np.nan
    points[::2, 0] = np.nan
    kernels.block_sums(points, values, frozen(volume), index, pose, intensity, out)
    assert np.isfinite(out).all()
    assert 0 < out[:, kernels.COUNT].sum() < 0.5 * all_of_them


def descent_twin(
    points: NDArray[np.float32], values: NDArray[np.float32], volume: NDArray[np.float32], index: Array, pose: Array,
    steps: int,
) -> tuple[Array, float, float]:  # fmt: skip
    pose, scale, offset = pose.copy(), 1.0, 0.0
    for _ in range(steps):
        s = sums_twin(points, values, volume, index, pose, np.array([scale, offset, 0.0]))[: kernels.COUNT]
        s = s.reshape(kernels.SIDE, kernels.SIDE)
        step = -np.linalg.solve(s[:8, :8], s[:8, 8])
        step[:6] /= scale
        scale, offset = scale + step[6], offset + step[7]
        pose[:, 3] += pose[:, :3] @ step[:3]
        pose[:, :3] = pose[:, :3] @ Rotation.from_rotvec(step[3:6]).as_matrix()
    return pose, scale, offset


def test_the_descent_takes_gauss_newtons_steps_and_comes_home() -> None:
    volume = gaussian_filter(np.random.default_rng(6).normal(0, 1, (12, 12, 12)), 2.0).astype(np.float32) * 3000
    index, pose = np.eye(4), np.hstack([np.eye(3), np.full((3, 1), 5.5)])
    points = np.random.default_rng(7).uniform(-3.5, 3.5, (400, 3)).astype(np.float32)
    whole = points + 5.5
    values = map_coordinates(volume, whole[:, ::-1].T, order=1).astype(np.float32) * np.float32(1.2) + np.float32(30)
    off = pose.copy()
    off[:, :3] = Rotation.from_rotvec([0.03, -0.02, 0.04]).as_matrix()
    off[:, 3] += 0.2, -0.3, 0.25
    settings = np.array([2.0, 0.0, 100.0, 3.5, 0.0])
    poses, results = off[None].copy(), np.zeros((1, kernels.RESULTS))
    results[:, 4] = 1.0
    kernels.descend(points, values, frozen(volume), index, poses, settings, results)
    twin, scale, offset = descent_twin(points, values, volume, index, off, 2)
    np.testing.assert_allclose(poses[0], twin, atol=2e-3)
    assert results[0, 2] == 2
    assert results[0, 3] == 0.0  # not settled: a step of any length would have been one too many
    assert (results[0, 4], results[0, 5]) == pytest.approx((scale, offset), abs=1e-2)
    # Several starts at once, to the end; the result of each is the same as alone.
    many = np.stack([off, pose])
    results = np.zeros((2, kernels.RESULTS))
    results[:, 4], results[:, 6] = 1.0, 1e4
    kernels.descend(points, values, volume, index, many, np.array([30.0, 1e-3, 1.0, 3.5, 2.0]), results)
    np.testing.assert_allclose(many, np.stack([pose, pose]), atol=5e-3)
    assert (results[:, 0] > 0.9999).all()
    assert (results[:, 1] == 1.0).all()
    assert (results[:, 3] == 1.0).all()
    np.testing.assert_allclose(results[:, 4], 1.2, atol=1e-2)


@pytest.mark.parametrize("n", [0, 50])
def test_the_descent_leaves_alone_what_it_cannot_solve(n: int) -> None:
    points, values = samples(8, n)
    poses, results = placed()[1][None].copy(), np.zeros((1, kernels.RESULTS))
    results[:, 4] = 1.0
    before = poses.copy()
    kernels.descend(points, values, frozen(image(4)), placed()[0], poses, np.array([5.0, 0.01, 1, 3, 2]), results)
    assert np.array_equal(poses, before)
    assert results[0, 2] == 0
    assert results[0, 3] == 0.0


@pytest.mark.parametrize("side", [2, 3, 20])
def test_moments_of_patches(side: int) -> None:
    slices, volume = image(9, (2, 8, 9)), image(10)
    slices[0, 2, 2:5] = np.nan
    index = np.hstack([np.eye(3) + 0.03, [[-0.8], [0.2], [1.4]]]).astype(np.float32)
    out = np.full((2, -(-8 // side), -(-9 // side), 6), 9.0)
    kernels.patch_moments(slices, frozen(volume), index, side, out)
    k, j, i = np.indices(slices.shape)
    at = np.stack([i, j, k], -1).reshape(-1, 3) @ index[:, :3].astype(np.float64).T + index[:, 3]
    inside, m, _ = looked_up(volume, at)
    ct = np.full(slices.size, np.nan)
    ct[inside] = m
    ct = ct.reshape(slices.shape)
    for place in np.ndindex(*out.shape[:3]):
        part = (place[0], *(slice(p * side, (p + 1) * side) for p in place[1:]))
        both = np.isfinite(slices[part]) & np.isfinite(ct[part])
        if 2 * both.sum() < side**2 or not both.any():
            assert np.isnan(out[place]).all()
            continue
        f, g = slices[part][both].astype(np.float64), ct[part][both]
        wanted = [len(f), f.mean(), g.mean(), f.var(), g.var(), ((f - f.mean()) * (g - g.mean())).mean()]
        np.testing.assert_allclose(out[place], wanted, rtol=1e-3, atol=0.1)
    assert side == 20 or np.isfinite(out).any()


def tilted() -> NDArray[np.float32]:
    return np.hstack([np.eye(3) + 0.02, [[-0.4], [0.3], [1.2]]]).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 7, 6), (2, 5, 6), (1, 1, 1)])
def test_costs_of_bumps(shape: tuple[int, int, int]) -> None:
    slices, volume, index = image(11, shape), image(12), tilted()
    slices[0, 0, 0] = np.nan
    volume[2, 2, 2] = np.nan
    bump = np.random.default_rng(16).random(shape[1:]).astype(np.float32)
    steps = np.array([[0, 0, 0], [0.5, -0.3, 1.2], [500, 0, 0]], np.float32)
    out, most = np.full(3, 9.0), np.float32(2e4)
    deform.bump_costs(slices, frozen(volume), index, bump, steps, np.float32(1.1), np.float32(-4), most, out)
    k, j, i = np.indices(shape)
    base = np.stack([i, j, k], -1).reshape(-1, 3) @ index[:, :3].astype(np.float64).T + index[:, 3]
    share = np.broadcast_to(bump, shape).reshape(-1, 1).astype(np.float64)
    for d, step in enumerate(steps):
        inside, m, _ = looked_up(volume, base + share * step)
        cost = np.full(slices.size, float(most))
        cost[inside] = np.fmin((1.1 * m - 4.0 - slices.ravel()[inside]) ** 2, most)
        wanted = cost[np.isfinite(slices.ravel())].sum()
        assert out[d] == pytest.approx(wanted, rel=1e-3, abs=1.0)
    assert shape == (1, 1, 1) or out[2] > out[0] > 0.0


@pytest.mark.parametrize("robust", [0.0, 1e-4])
@pytest.mark.parametrize("shape", [(1, 7, 6), (2, 5, 6), (1, 1, 1)])
def test_normal_equations_of_the_displacement(shape: tuple[int, int, int], robust: float) -> None:
    slices, volume, index = image(13, shape), image(14), tilted()
    slices[0, 0, 0] = np.nan
    volume[0, 0, 0] = np.nan
    turn = (np.diag([0.9, 1.1, 0.7]) + 0.05).astype(np.float32)
    u = np.random.default_rng(15).normal(0, 0.5, (*shape[1:], 3)).astype(np.float32)
    out = np.full((-(-shape[1] // 4), -(-shape[2] // 4), deform.TILE_SUMS), 9.0)
    deform.tile_sums(
        slices, frozen(volume), index, turn, u, 4, np.float32(1.1), np.float32(-4), np.float32(robust), out
    )  # fmt: skip
    k, j, i = np.indices(shape)
    at = np.stack([i, j, k], -1) @ index[:, :3].astype(np.float64).T + index[:, 3]
    at = (at + u.astype(np.float64) @ turn.T).reshape(-1, 3)
    inside, m, gradient = looked_up(volume, at)
    g = 1.1 * gradient @ turn.astype(np.float64)
    r = 1.1 * m - 4.0 - slices.ravel()[inside]
    w = 1.0 / (1.0 + r * r * robust)
    rows = np.column_stack([
        g[:, 0] ** 2, g[:, 0] * g[:, 1], g[:, 0] * g[:, 2], g[:, 1] ** 2, g[:, 1] * g[:, 2], g[:, 2] ** 2,
        g[:, 0] * r, g[:, 1] * r, g[:, 2] * r, r * r, np.ones(len(r)), r,
    ])  # fmt: skip
    whole = np.zeros((slices.size, deform.TILE_SUMS))
    whole[inside] = np.nan_to_num(w[:, None] * rows)
    whole = whole.reshape(*shape, -1)
    for row, column in np.ndindex(*out.shape[:2]):
        wanted = whole[:, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].sum(axis=(0, 1, 2))
        np.testing.assert_allclose(out[row, column], wanted, rtol=2e-3, atol=1e-3 * max(np.abs(wanted).max(), 1.0))
