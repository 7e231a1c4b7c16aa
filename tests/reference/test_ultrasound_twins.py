"""The kernels of the registration of ultrasound to CT against plain NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import lsq_linear

from nav.registration import ultrasound_kernels as kernels

SIDE = 5
FLOOR = 4.0


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """One compilation, with the types that the registration has."""
    for spec in kernels.KERNELS:
        spec.compile()


def test_reduced_frames_are_means_of_what_is_image() -> None:
    images = np.random.default_rng(1).integers(0, 255, (2, 9, 11)).astype(np.uint8)
    mask = np.ones((9, 11), np.uint8)
    mask[:3, :2] = 0  # a whole block
    mask[3:6, 2:4] = [[0, 1], [0, 1], [1, 1]]
    mask[6:9, :2] = [[0, 1], [0, 1], [0, 1]]  # half of it: outside
    out = np.empty((2, 3, 5), np.float32)
    kernels.reduce_frames(images, mask, np.array([3, 2]), out)
    for n, row, column in np.ndindex(*out.shape):
        part = (slice(3 * row, 3 * row + 3), slice(2 * column, 2 * column + 2))
        inside = mask[part] != 0
        if 2 * inside.sum() > 6:
            assert out[n, row, column] == pytest.approx(images[n][part][inside].mean(), rel=1e-6)
        else:
            assert np.isnan(out[n, row, column])
    assert np.isnan(out).sum() == 4


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 1, 1), (1, 3, 2)])
def test_channels_are_the_image_and_its_gradient(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(2)
    image, turn = rng.normal(0, 50, shape).astype(np.float32), rng.normal(0, 1, (3, 3)).astype(np.float32)
    if image.size > 1:
        image[0, 0, 0] = np.nan
    out = np.full((*shape, 2), 9.0, np.float32)
    kernels.channels(image, turn, out)
    gradient = np.zeros((*shape, 3))
    for axis, of in ((0, 2), (1, 1), (2, 0)):
        if shape[of] > 1:
            gradient[..., axis] = np.gradient(image.astype(np.float64), axis=of)
    assert np.array_equal(out[..., 0], image, equal_nan=True)
    np.testing.assert_allclose(out[..., 1], np.linalg.norm(gradient @ turn.T, axis=-1), rtol=1e-4, atol=1e-3)


def scene(seed: int = 3) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Patches' images (18, SIDE²) freed of their trend, patches, CT (9, 10, 11, 2), (column, row, 1) to index (2)."""
    rng = np.random.default_rng(seed)
    patches = np.array([[n, r, c] for n in (0, 1) for r in (0, 5, 10) for c in (0, 5, 10)], np.int32)
    pixels = rng.normal(80, 20, (len(patches), SIDE * SIDE))
    images = freed(pixels.T).T
    images[4] = 0.0  # no structure
    ct = rng.normal(0, 60, (9, 10, 11, 2)).astype(np.float32)
    ct[0, 0, 0] = np.nan
    index = np.zeros((2, 3, 3))
    index[0] = [[0.557, 0.023, 0.913], [0.031, 0.503, 1.117], [0.103, 0.351, 0.319]]
    index[1] = [[0.507, 0.041, 2.413], [-0.053, 0.557, 1.423], [0.251, 0.107, 1.217]]
    return np.ascontiguousarray(images, np.float32), patches, ct, index.astype(np.float32)


def basis() -> NDArray[np.float64]:
    row, column = np.indices((SIDE, SIDE)).reshape(2, -1) - (SIDE - 1) / 2.0
    return np.stack([np.ones(SIDE * SIDE), column, row], axis=1)


def freed(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """(SIDE², n) without their linear trend."""
    return np.asarray(columns - basis() @ np.linalg.lstsq(basis(), columns, rcond=None)[0])


def channels_at(patch: NDArray[np.int32], ct: NDArray[np.float32], index: NDArray[np.float64]) -> NDArray[np.float64]:
    """(SIDE², 2) of the CT at the pixels of a patch; NaN where it is out."""
    frame, r0, c0 = patch
    row, column = np.indices((SIDE, SIDE)).reshape(2, -1) + np.array([[r0], [c0]])
    at = index[frame] @ np.stack([column, row, np.ones_like(row)])
    if (at < kernels.EDGE).any() or (at >= np.array(ct.shape[2::-1])[:, None] - 1 - kernels.EDGE).any():
        return np.full((SIDE * SIDE, 2), np.nan)
    return np.stack([map_coordinates(ct[..., q], at[::-1], order=1, output=np.float64) for q in (0, 1)], axis=1)


def patch_twin(
    image: NDArray[np.float32],
    patch: NDArray[np.int32],
    ct: NDArray[np.float32],
    index: NDArray[np.float64],
    echo: bool,
) -> tuple[float, float, NDArray[np.float64]] | None:
    """Total, residual (with the floor's share), and (a, b) of a ridge fit by least squares; None where it is out.

    ``echo``: with b not below 0.
    """
    v, u = freed(channels_at(patch, ct, index)), image.astype(np.float64)
    if not np.isfinite(v).all():
        return None
    ridge = np.sqrt(SIDE * SIDE * FLOOR) * np.eye(2)
    lowest = [-np.inf, 0.0 if echo else -np.inf]
    fit = lsq_linear(np.concatenate([v, ridge]), np.concatenate([u, np.zeros(2)]), (lowest, np.inf), tol=1e-14).x
    left = u - v @ fit
    return float(u @ u), float(left @ left + SIDE * SIDE * FLOOR * fit @ fit), fit


def pose_arguments(index: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """index_from_ras, centre_index, ras_from_pixel whose product is ``index``."""
    linear = np.array([[0.8, 0.1, 0.0], [0.0, 0.7, -0.1], [0.05, 0.0, 0.6]])
    centre = np.array([4.0, 4.5, 3.0])
    shifted = index.astype(np.float64)
    shifted[:, :, 2] -= centre
    ras = np.linalg.inv(linear) @ shifted
    return linear.astype(np.float32), centre.astype(np.float32), np.ascontiguousarray(ras, np.float32)


def fits(images, patches, ct, linear, centre, ras, echo=False, slopes=True):  # type: ignore[no-untyped-def]
    out = np.full((len(patches), kernels.SUMS), 9.0)
    kernels.patch_fits(images, patches, SIDE, ct, linear, centre, ras, FLOOR, echo, slopes, out)
    return out


@pytest.mark.parametrize("echo", [False, True])
def test_the_fit_of_every_patch(echo: bool) -> None:
    images, patches, ct, index = scene()
    out = fits(images, patches, ct, *pose_arguments(index), echo)
    used = held = 0
    for n, patch in enumerate(patches):
        twin = patch_twin(images[n], patch, ct, index.astype(np.float64), echo)
        if twin is None:
            assert not out[n].any()
            continue
        used += 1
        held += out[n, kernels.FIT] != 0.0 and out[n, kernels.FIT + 1] == 0.0
        assert out[n, kernels.COUNT] == SIDE * SIDE
        np.testing.assert_allclose(out[n, kernels.TOTAL], twin[0], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(out[n, kernels.RESIDUAL], twin[1], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(out[n, kernels.FIT : kernels.FIT + 2], twin[2], rtol=1e-2, atol=1e-4)
    assert 4 < used < len(patches)
    assert (0 < held < used) == echo
    alone = fits(images, patches, ct, *pose_arguments(index), echo, slopes=False)
    np.testing.assert_array_equal(alone[:, : kernels.GRADIENT], out[:, : kernels.GRADIENT])
    assert not alone[:, kernels.GRADIENT :].any()


@pytest.mark.parametrize("echo", [False, True])
def test_the_slope_is_that_of_half_the_residual(echo: bool) -> None:
    images, patches, ct, index = scene()
    # A trilinear image has kinks: in a smooth one they are small.
    ct = np.ascontiguousarray(4.0 * gaussian_filter(np.nan_to_num(ct), (1.5, 1.5, 1.5, 0)), np.float32)
    linear, centre, ras = pose_arguments(index)
    out = fits(images, patches, ct, linear, centre, ras, echo)
    step = 2e-3
    for d in range(6):
        sides = []
        for sign in (1.0, -1.0):
            moved = ras.astype(np.float64)
            if d < 3:
                moved[:, d, 2] += sign * step
            else:
                turn = np.zeros(3)
                turn[d - 3] = sign * step
                skew = np.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
                moved = moved + skew @ moved
            sides.append(fits(images, patches, ct, linear, centre, np.ascontiguousarray(moved, np.float32), echo))
        known = (out[:, 0] > 0) & (sides[0][:, 0] > 0) & (sides[1][:, 0] > 0)
        slope = (sides[0] - sides[1])[known, kernels.RESIDUAL] / (4.0 * step)
        wanted = out[known, kernels.GRADIENT + d]
        assert np.abs(wanted).max() > 1.0
        assert np.corrcoef(slope, wanted)[0, 1] > 0.98


@pytest.mark.parametrize("echo", [False, True])
def test_the_hessian_is_what_the_fit_leaves_of_the_slopes(echo: bool) -> None:
    images, patches, ct, index = scene()
    ct = np.ascontiguousarray(4.0 * gaussian_filter(np.nan_to_num(ct), (1.5, 1.5, 1.5, 0)), np.float32)
    linear, centre, ras = pose_arguments(index)
    out = fits(images, patches, ct, linear, centre, ras, echo)
    hessians = out[:, kernels.HESSIAN :].reshape(-1, 3, 3)
    np.testing.assert_array_equal(hessians, hessians.transpose(0, 2, 1))
    assert min(np.linalg.eigvalsh(h)[0] for h in hessians) > -1e-6 * np.abs(hessians).max()
    assert np.abs(hessians).max() > 1.0
    step, used = 1e-4, 0
    for n, patch in enumerate(patches):
        fit = out[n, kernels.FIT : kernels.FIT + 2]
        if not fit.any():
            assert not hessians[n].any()
            continue
        sides = []
        for d in range(3):
            for sign in (1.0, -1.0):
                moved = index.astype(np.float64)
                moved[:, :, 2] += sign * step * linear[:, d]
                sides.append(channels_at(patch, ct, moved) @ fit)
        slopes = freed(np.stack([sides[0] - sides[1], sides[2] - sides[3], sides[4] - sides[5]], axis=1) / (2.0 * step))
        v = freed(channels_at(patch, ct, index.astype(np.float64)))[:, : 1 if echo and fit[1] == 0.0 else 2]
        inverse = np.linalg.inv(v.T @ v + SIDE * SIDE * FLOOR * np.eye(v.shape[1]))
        left = slopes - v @ (inverse @ (v.T @ slopes))
        wanted = left.T @ left
        # Where a pixel lies within a step of a voxel's face, both slopes are right.
        if np.abs(hessians[n] - wanted).max() < 0.02 * np.abs(wanted).max():
            used += 1
        assert np.abs(hessians[n] - wanted).max() < 0.2 * np.abs(wanted).max()
    assert used > 4


@pytest.mark.parametrize(("count", "echo"), [(0, False), (1, False), (3, True)])
def test_the_similarity_at_many_poses_is_that_of_the_fits(count: int, echo: bool) -> None:
    images, patches, ct, index = scene()
    weights = np.random.default_rng(4).random(len(patches))
    poses = np.stack([index + 0.1 * n for n in range(count)]) if count else np.zeros((0, 2, 3, 3))
    poses = np.ascontiguousarray(poses, np.float32)
    out = np.full((count, 2), 9.0)
    kernels.similarities(images, patches, weights, SIDE, ct, poses, FLOOR, echo, out)
    for n in range(count):
        at = poses[n].astype(np.float64)
        found = [patch_twin(image, patch, ct, at, echo) for image, patch in zip(images, patches, strict=True)]
        known = [(w, f) for w, f in zip(weights, found, strict=True) if f is not None and f[0] > 1e-3]
        assert out[n, 1] == pytest.approx(sum(w for w, _ in known), rel=1e-6)
        assert out[n, 0] == pytest.approx(sum(w * (1 - f[1] / f[0]) for w, f in known), rel=1e-3)


def test_a_pose_that_is_no_number_leaves_nothing() -> None:
    images, patches, ct, index = scene()
    linear, _, ras = pose_arguments(index)
    assert not fits(images, patches, ct, linear, np.full(3, np.nan, np.float32), ras).any()
