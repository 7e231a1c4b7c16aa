"""The kernels of the registration by mutual information against plain NumPy twins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from nav.registration import mutual_information_kernels as kernels

NONE = np.zeros((0, 0, 0), np.uint8)
TOP = kernels.BINS - 1


def in_bins(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.5, TOP - 0.5, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 1, 1)])
def test_grey_values_become_places_among_the_bins(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(0, 400, shape).astype(np.float32)
    table = np.cumsum(rng.random(9)).astype(np.float32)
    out = np.full(shape, 9.0, np.float32)
    kernels.to_bins(image, table, np.float32(-500), np.float32(8 / 1000), out)
    twin = np.interp(image, np.linspace(-500, 500, 9), table)
    np.testing.assert_allclose(out, twin, atol=1e-5)
    assert image.size == 1 or {table[0], table[-1]} <= set(out.ravel().tolist())


def test_what_is_not_a_number_has_no_bin() -> None:
    image = np.array([[[np.nan, 0.0, np.inf, -np.inf]]], np.float32)
    out = np.zeros_like(image)
    kernels.to_bins(image, np.array([1.0, 2.0, 3.0], np.float32), np.float32(-1), np.float32(1), out)
    np.testing.assert_array_equal(out[0, 0], np.array([np.nan, 2.0, 3.0, 1.0], np.float32))


def tilted() -> NDArray[np.float32]:
    index = np.eye(4)
    index[:3, :3] += np.random.default_rng(8).normal(0, 0.05, (3, 3))
    index[:3, 3] = 0.3, -0.2, 0.4
    return index.astype(np.float32)


def shared_out(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, BINS): how much of each value every bin gets."""
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(kernels.BINS)))


@pytest.mark.parametrize("n", [0, 1, 63, 900])
@pytest.mark.parametrize("masked", [False, True])
def test_the_joint_histogram(n: int, masked: bool) -> None:
    moving = in_bins(7, (7, 9, 8))
    mask = (np.random.default_rng(9).random(moving.shape) < 0.6).astype(np.uint8) if masked else NONE
    rng = np.random.default_rng(10)
    positions = (rng.random((n, 3)) * np.array([12.0, 13.0, 11.0]) - 2.0).astype(np.float32)
    values = in_bins(11, (n,))
    if n > 100:
        positions[5] = np.nan
        values[7] = np.nan
    seen = np.full(n, 9.0, np.float32)
    out = np.full((kernels.BLOCKS, kernels.BINS, kernels.BINS), 9.0, np.float32)
    kernels.joint_histogram(positions, values, moving, mask, tilted(), seen, out)
    at = positions.astype(np.float64) @ tilted()[:3, :3].T + tilted()[:3, 3]
    inside = ((at >= 0) & (at < np.array(moving.shape[::-1]) - 1)).all(axis=1) & np.isfinite(values)
    if masked:
        nearest = (at[inside] + 0.5).astype(int)
        inside[inside] = mask[nearest[:, 2], nearest[:, 1], nearest[:, 0]] != 0
    m = map_coordinates(moving, at[inside][:, ::-1].T, order=1, output=np.float64)
    np.testing.assert_allclose(seen[inside], m, atol=2e-4)
    assert (seen[~inside] == -1.0).all()
    twin = shared_out(values[inside].astype(np.float64)).T @ shared_out(m)
    np.testing.assert_allclose(out.sum(axis=0), twin, atol=1e-3)
    assert n < 900 or inside.sum() > 100
    # Every block has the samples of its own rows.
    edges = [n * block // kernels.BLOCKS for block in range(kernels.BLOCKS + 1)]
    wanted = [inside[a:b].sum() for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(out.sum(axis=(1, 2)), wanted, atol=1e-4)


@pytest.mark.parametrize("n", [0, 1, 700])
def test_the_sums_of_a_step(n: int) -> None:
    rng = np.random.default_rng(12)
    values, seen = in_bins(13, (n,)), in_bins(14, (n,))
    seen[::3] = -1.0
    jacobian = rng.normal(0, 1, (n, 6)).astype(np.float32)
    table, slope = (rng.normal(0, 1, (kernels.BINS, kernels.BINS)).astype(np.float32) for _ in range(2))
    out = np.full((kernels.BLOCKS, kernels.SUMS), 9.0)
    kernels.score(values, seen, jacobian, table, slope, out)
    inside = seen >= 0
    at = np.stack([values[inside], seen[inside]]).astype(np.float64)
    s = map_coordinates(slope, at, order=1, output=np.float64)[:, None] * jacobian[inside]
    twin = np.concatenate(
        [(s.T @ s).ravel(), s.sum(axis=0), [map_coordinates(table, at, order=1, output=np.float64).sum(), inside.sum()]]
    )
    np.testing.assert_allclose(out.sum(axis=0), twin, rtol=1e-4, atol=1e-3)
    assert out[:, kernels.INSIDE].max() <= -(-n // kernels.BLOCKS)
