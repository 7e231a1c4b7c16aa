"""The kernels of surfaces and of point drift against plain NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from nav.registration import point_drift_kernels as drift
from nav.registration import surface_kernels as kernels

Array = NDArray[np.float64]
Single = NDArray[np.float32]
NONE = np.zeros((0, 3), np.float32)


def cloud(seed: int, n: int) -> tuple[Single, Single]:
    """Points on a bumpy ball, and their directions as normals."""
    direction = np.random.default_rng(seed).normal(size=(n, 3))
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    return (direction * (40 + 5 * np.sin(4 * direction[:, :1]))).astype(np.float32), direction.astype(np.float32)


def built(points: Single) -> tuple[tuple[Single, NDArray[np.int8], Single, int], NDArray[np.int32]]:
    levels = kernels.levels_of(len(points))
    tree, order = points.copy(), np.full(len(points), -1, np.int32)
    dimension, value = np.zeros(1 << levels, np.int8), np.zeros(1 << levels, np.float32)
    kernels.build_tree(tree, levels, order, dimension, value)
    return (tree, dimension, value, levels), order


@pytest.mark.parametrize("n", [1, 8, 9, 100, 333])
def test_the_tree_halves_its_points(n: int) -> None:
    points, _ = cloud(1, n)
    if n == 333:
        points[50:150] = points[50]  # many in one place
    (tree, dimension, value, levels), order = built(points)
    assert np.array_equal(points[order], tree)
    assert sorted(order) == list(range(n))
    ranges = {1: (0, n)}
    for node in range(1, 1 << levels):
        low, high = ranges[node]
        mid = (low + high) // 2
        ranges[2 * node], ranges[2 * node + 1] = (low, mid), (mid, high)
        along = tree[:, dimension[node]]
        assert along[low:mid].max() <= value[node] <= along[mid:high].min()


def pose_of(degrees: float) -> Array:
    return np.hstack([Rotation.from_rotvec([0, np.deg2rad(degrees), 0.05]).as_matrix(), [[1.0], [-2.0], [0.5]]])


def equations_twin(
    points: Single, normals: Single, moving: Single, own: Single, pose: Array, scale: float, reach: float
) -> tuple[Array, Array, Array, NDArray[np.intp]]:
    moved = moving.astype(float) @ pose[:, :3].T + pose[:, 3]
    apart = cdist(moved, points)
    near = apart.argmin(axis=1)
    n, away = normals[near].astype(float), moved - points[near]
    facing = np.ones(len(moved))
    if len(own):
        turned = own.astype(float) @ pose[:, :3].T
        facing = (n * turned).sum(axis=1)
        half = n + turned
        n = np.where(facing[:, None] > 0.5, half / np.linalg.norm(half, axis=1)[:, None], n)
    r = (n * away).sum(axis=1)
    across = np.sqrt(np.maximum((away**2).sum(axis=1) - r**2, 0))
    across[facing <= 0.5] = np.inf
    used = (across <= reach) & (np.abs(r) < scale)
    w = np.where(used, (1 - (r / scale) ** 2) ** 2, 0.0)
    jacobian = np.hstack([n, np.cross(moved - pose[:, 3], n)])
    sums = [*((jacobian * w[:, None]).T @ jacobian).ravel(), *(jacobian.T @ (w * r)), w @ r**2, w.sum(), used.sum()]
    return np.array(sums), r, across, near


@pytest.mark.parametrize("n", [0, 1, 65, 200])
@pytest.mark.parametrize("both", [False, True])
def test_the_normal_equations_of_a_step(n: int, both: bool) -> None:
    points, normals = cloud(2, 150)
    tree, order = built(points)
    moving, own = cloud(3, n)
    pose = pose_of(8.0)
    nearest, residuals, across = np.full(n, -1, np.int32), np.zeros(n, np.float32), np.zeros(n, np.float32)
    out = np.full((kernels.BLOCKS, kernels.SUMS), 9.0)
    scale, reach = 4.0, 6.0
    want, r, along, near = equations_twin(tree[0], normals[order], moving, own if both else NONE, pose, scale, reach)
    for _ in range(2):  # from nothing, and from the last partners
        kernels.surface_equations(
            tree[0], normals[order], *tree[1:], moving, own if both else NONE, pose, pose[:, 3].copy(),
            np.float32(scale), np.float32(reach), nearest, residuals, across, out,
        )  # fmt: skip
        assert np.array_equal(nearest, near)
        np.testing.assert_allclose(residuals, r, atol=2e-4)
        np.testing.assert_allclose(across, along, atol=2e-3)
        np.testing.assert_allclose(out.sum(axis=0), want, rtol=2e-3, atol=2e-3 * (1.0 + np.abs(want[:36]).max()))
        assert n < 200 or 20 < out[:, kernels.USED].sum() < 200


def test_a_point_that_is_not_a_number_has_no_partner() -> None:
    points, normals = cloud(2, 60)
    tree, order = built(points)
    moving, _ = cloud(3, 20)
    moving[::2, 1] = np.nan
    nearest, residuals, across = np.full(20, -1, np.int32), np.zeros(20, np.float32), np.zeros(20, np.float32)
    out = np.empty((kernels.BLOCKS, kernels.SUMS))
    kernels.surface_equations(
        tree[0], normals[order], *tree[1:], moving, NONE, np.eye(4)[:3].copy(), np.zeros(3),
        np.float32(50), np.float32(50), nearest, residuals, across, out,
    )  # fmt: skip
    assert (nearest[::2] == -1).all()
    assert np.isinf(across[::2]).all()
    assert np.isfinite(out).all()
    assert out[:, kernels.USED].sum() == 10


def test_starts_come_to_rest_where_plain_steps_do() -> None:
    points, normals = cloud(4, 120)
    tree, order = built(points)
    moving, _ = cloud(5, 40)
    start, share, damping = pose_of(3.0), 0.8, 1e-3
    poses, scores = np.array([start, pose_of(-4.0), start]), np.empty(3)
    kernels.search(tree[0], normals[order], *tree[1:], moving, NONE, share, damping, 2, poses, scores)
    pose = np.vstack([start, [0, 0, 0, 1.0]])
    for step in range(3):
        moved = moving.astype(float) @ pose[:3, :3].T + pose[:3, 3]
        apart = cdist(moved, tree[0])
        near, square = apart.argmin(axis=1), apart.min(axis=1) ** 2
        kept = square <= np.sort(square)[int(share * 40) - 1]
        if step == 2:
            break
        centre = moved[kept].mean(axis=0)
        n = normals[order][near][kept].astype(float)
        r = (n * (moved[kept] - tree[0][near][kept])).sum(axis=1)
        jacobian = np.hstack([n, np.cross(moved[kept] - centre, n)])
        h = jacobian.T @ jacobian
        h += np.diag(np.repeat([np.trace(h[:3, :3]), np.trace(h[3:, 3:])], 3) / 3 * damping)
        change = np.linalg.solve(h, -jacobian.T @ r)
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_rotvec(change[3:]).as_matrix()
        turn[:3, 3] = centre - turn[:3, :3] @ centre + change[:3]
        pose = turn @ pose
    np.testing.assert_allclose(poses[0], pose[:3], atol=1e-4)
    assert scores[0] == pytest.approx(np.sqrt(square[kept].mean()), rel=1e-4)
    assert np.array_equal(poses[0], poses[2])
    assert not np.allclose(poses[0], poses[1])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (40, 30), (17, 50)])
@pytest.mark.parametrize("uniform", [0.0, 0.3])
def test_soft_matches(n: int, m: int, uniform: float) -> None:
    fixed, moved = cloud(6, n)[0] / 10, cloud(7, m)[0] / 10
    variance = 2.0
    sums, at_fixed = np.empty((drift.BLOCKS, 4, m), np.float32), np.empty(n)
    likelihood, out = np.empty(drift.BLOCKS), np.empty((4, m))
    drift.soft_matches(fixed.T.copy(), moved.T.copy(), variance, uniform, sums, at_fixed, likelihood, out)
    near = np.exp(-0.5 / variance * cdist(moved, fixed, "sqeuclidean"))
    below = near.sum(axis=0) + uniform
    p = near / below
    np.testing.assert_allclose(at_fixed, p.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(out[3], p.sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[:3], (p @ fixed).T, rtol=1e-4, atol=1e-4)
    assert likelihood.sum() == pytest.approx(np.log(below).sum(), rel=1e-5, abs=1e-5)


def test_a_fixed_point_that_is_not_a_number_belongs_to_nothing() -> None:
    fixed, moved = cloud(6, 20)[0], cloud(7, 10)[0]
    fixed[3] = np.nan
    sums, at_fixed = np.empty((drift.BLOCKS, 4, 10), np.float32), np.empty(20)
    likelihood, out = np.empty(drift.BLOCKS), np.empty((4, 10))
    drift.soft_matches(fixed.T.copy(), moved.T.copy(), 25.0, 0.1, sums, at_fixed, likelihood, out)
    assert np.isfinite(out).all()
    assert at_fixed[3] == 0.0
