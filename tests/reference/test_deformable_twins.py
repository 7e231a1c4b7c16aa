"""The kernels of the deformable registration against plain NumPy twins, those for a GPU too where there is one.

The simulator stands in for a GPU: ``NUMBA_ENABLE_CUDASIM=1``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from nav.registration import deformable_kernels
from nav.registration.deformable_device import Device, DeviceError, device_named

NONE = np.zeros((0, 0, 0), np.uint8)
NO_WEIGHT = np.zeros((0, 0, 0), np.float32)
STEP = deformable_kernels.STEP
SHAPES = [(7, 8, 9), (1, 5, 4), (1, 1, 1)]
#: Not a rotation only: a grid may be anisotropic and lie obliquely.
TURN = np.array([[0.5, 0.1, 0.0], [-0.1, 0.45, 0.05], [0.0, 0.02, 0.25]], np.float32)


class OnDevice:
    """The kernels of a device, for arrays of the host: what is written comes back."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            there = [self.device.array(a) if np.ndim(a) > 2 else a for a in arguments]
            getattr(self.device.kernels, name)(*there)
            for ours, theirs in zip(arguments, there, strict=True):
                if np.ndim(ours) > 2 and ours.flags.writeable:
                    ours[...] = self.device.home(theirs)

        return call


@pytest.fixture(params=["cpu", "cuda"])
def kernels(request: pytest.FixtureRequest) -> Any:
    try:
        return OnDevice(device_named(request.param))
    except DeviceError as missing:
        pytest.skip(f"{missing}; or simulate one with NUMBA_ENABLE_CUDASIM=1")


def noise(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def nodes_of(shape: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple((n - 2 + STEP) // STEP + 1 for n in shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [1, 3])
def test_local_normalisation(kernels: Any, shape: tuple[int, int, int], radius: int) -> None:
    image = noise(1, *shape)
    one, two, out = (np.empty(shape, np.float32) for _ in range(3))
    kernels.locally_normalised(image, radius, np.float32(0.01), one, two, out)
    for place in np.ndindex(*shape):
        box = image[tuple(slice(max(p - radius, 0), p + radius + 1) for p in place)].astype(np.float64)
        assert out[place] == pytest.approx((image[place] - box.mean()) / np.sqrt(box.var() + 0.01), abs=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_moving_image_is_sampled_where_the_field_says(kernels: Any, shape: tuple[int, int, int]) -> None:
    moving = noise(2, 6, 9, 7)
    field = noise(3, *nodes_of(shape), 3)
    index = np.eye(4, dtype=np.float32)
    index[:3, :3] += 0.1 * noise(4, 3, 3)
    index[:3, 3] = 0.4, -0.3, 0.2
    mask = np.ones(moving.shape, np.uint8)
    mask[3:, 4:, 2:5] = 0
    out, valid = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    first = 0.5
    kernels.warped(moving, mask, index, TURN, field, 2, np.float32(first), out, valid)
    for place in np.ndindex(*shape):
        at = [[np.clip((p - first) / 2.0, 0, n - 1)] for p, n in zip(place, field.shape[:3], strict=True)]
        moved = [float(map_coordinates(field[..., c].astype(float), at, order=1)[0]) for c in range(3)]
        there = (index[:3, :3] @ place[::-1] + index[:3, 3] + TURN @ moved).astype(np.float64)
        inside = all(-0.5 <= x <= n - 0.5 for x, n in zip(there, moving.shape[::-1], strict=True))
        clipped = np.clip(there, 0, np.array(moving.shape[::-1]) - 1)
        if np.abs(there - np.rint(there * 2) / 2).min() > 1e-4:  # on an edge float32 may fall on either side
            nearest = tuple(int(np.floor(x + 0.5)) for x in clipped[::-1])
            assert valid[place] == (inside and mask[nearest] != 0)
        value = map_coordinates(moving.astype(float), clipped[::-1, None], order=1)[0]
        assert out[place] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_normal_equations(kernels: Any, shape: tuple[int, int, int]) -> None:
    fixed, moved = noise(5, *shape), noise(6, *shape)
    mask = (np.random.default_rng(7).random(shape) < 0.8).astype(np.uint8)
    valid = (np.random.default_rng(8).random(shape) < 0.8).astype(np.uint8)
    matrix = np.empty((*nodes_of(shape), 6), np.float32)
    right = np.empty((*nodes_of(shape), 3), np.float32)
    kernels.data_term(fixed, moved, mask, valid, TURN, matrix, right)
    mean = 0.5 * (fixed + moved).astype(np.float64)
    gradient = np.zeros((*shape, 3))
    for axis, of in ((0, 2), (1, 1), (2, 0)):
        if shape[of] > 1:
            gradient[..., axis] = np.gradient(mean, axis=of)
    gradient = gradient @ TURN.T.astype(np.float64)
    for node in np.ndindex(*right.shape[:3]):
        a, b = np.zeros((3, 3)), np.zeros(3)
        for place in np.ndindex(*shape):
            weight = np.prod([max(0.0, 1.0 - abs(p / 2.0 - n)) for p, n in zip(place, node, strict=True)])
            if weight and mask[place] and valid[place]:
                a += weight * np.outer(gradient[place], gradient[place])
                b += weight * gradient[place] * float(fixed[place] - moved[place])
        np.testing.assert_allclose(matrix[node], a[np.triu_indices(3)], atol=1e-4)
        np.testing.assert_allclose(right[node], b, atol=1e-4)


def test_a_voxel_that_is_not_a_number_stays_near_its_node(kernels: Any) -> None:
    fixed, moved = noise(9, 9, 9, 9), noise(10, 9, 9, 9)
    fixed[0, 0, 0] = np.nan
    matrix, right = np.empty((5, 5, 5, 6), np.float32), np.empty((5, 5, 5, 3), np.float32)
    kernels.data_term(fixed, moved, NONE, np.ones((9, 9, 9), np.uint8), TURN, matrix, right)
    bad = np.isnan(right).any(axis=3)
    assert bad[0, 0, 0]
    assert not bad[2:].any()
    assert not bad[:, 2:].any()


def gradients_of(field: NDArray[np.float32], node: tuple[int, ...]) -> NDArray[np.float64]:
    """(3, 3) derivative of the displacement (rows) by RAS, forward differences, 0 at the last node."""
    steps = np.zeros((3, 3))
    for axis, of in ((0, 2), (1, 1), (2, 0)):
        following = list(node)
        following[of] += 1
        if following[of] < field.shape[of]:
            steps[:, axis] = field[tuple(following)].astype(float) - field[node]
    return steps @ TURN.T.astype(np.float64)


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 1, 1)])
def test_stiffness_falls_with_strain_and_rises_before_a_fold(kernels: Any, shape: tuple[int, int, int]) -> None:
    field, out = 1.5 * noise(11, *shape, 3), np.empty(shape, np.float32)
    kernels.stiffness(field, TURN, np.float32(0.8), np.float32(0.3), out)
    folds = 0
    for node in np.ndindex(*shape):
        g = gradients_of(field, node)
        folded = np.linalg.det(np.eye(3) + g) < 0.3
        folds += folded
        assert out[node] == pytest.approx(2.0 if folded else 1.0 / (1.0 + (g**2).sum() / 0.64), abs=1e-4)
    assert folds > 0 or shape == (1, 1, 1)


def laplacian(shape: tuple[int, ...], stiff: NDArray[np.float32], per_axis: NDArray[np.float32]) -> NDArray[np.float64]:
    """Dense, over nodes in memory order."""
    number = np.arange(np.prod(shape)).reshape(shape)
    out = np.zeros((number.size, number.size))
    for axis, of in ((0, 2), (1, 1), (2, 0)):
        one, two = (np.moveaxis(number, of, 0)[part].ravel() for part in (slice(None, -1), slice(1, None)))
        weight = per_axis[axis] * stiff.ravel()[one]
        for a, b, w in zip(one, two, weight, strict=True):
            out[a, a] += w
            out[b, b] += w
            out[a, b] -= w
            out[b, a] -= w
    return out


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1)])
def test_smoothing_solves_its_equations(kernels: Any, shape: tuple[int, int, int]) -> None:
    source, stiff = noise(12, *shape, 3), np.abs(noise(13, *shape)) + np.float32(0.1)
    per_axis = np.array([0.8, 0.5, 0.3], np.float32)
    out = source.copy()
    kernels.smoothed(source, stiff, per_axis, np.float32(1.3), 60, out)
    system = np.eye(stiff.size) + laplacian(shape, stiff, per_axis)
    np.testing.assert_allclose(out.reshape(-1, 3), np.linalg.solve(system, source.reshape(-1, 3)), atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1)])
def test_the_solution_solves_its_equations(kernels: Any, shape: tuple[int, int, int]) -> None:
    count = int(np.prod(shape))
    half = np.random.default_rng(14).normal(0, 1, (count, 3, 3))
    blocks = half @ half.transpose(0, 2, 1)
    matrix = np.ascontiguousarray(blocks[:, *np.triu_indices(3)].reshape(*shape, 6), np.float32)
    right, before, stiff = noise(15, *shape, 3), noise(16, *shape, 3), np.abs(noise(17, *shape)) + np.float32(0.1)
    per_axis = np.array([0.8, 0.5, 0.3], np.float32)
    out = before.copy()
    kernels.solved(matrix, right, before, stiff, per_axis, np.float32(1.5), 300, out)
    system = np.kron(laplacian(shape, stiff, per_axis), np.eye(3))
    wanted = right.reshape(-1).astype(np.float64)
    for n in range(count):
        rows = slice(3 * n, 3 * n + 3)
        system[rows, rows] += blocks[n]
        wanted[rows] += blocks[n] @ before.reshape(-1, 3)[n]
    np.testing.assert_allclose(out.reshape(-1), np.linalg.solve(system, wanted), atol=2e-3)


def test_a_node_that_nothing_holds_keeps_its_value(kernels: Any) -> None:
    zero, out = np.zeros((1, 1, 1, 3), np.float32), np.full((1, 1, 1, 3), 7.0, np.float32)
    matrix, stiff, per_axis = np.zeros((1, 1, 1, 6), np.float32), np.ones((1, 1, 1), np.float32), np.ones(3, np.float32)
    kernels.solved(matrix, zero, zero, stiff, per_axis, np.float32(1.6), 3, out)
    assert (out == 7.0).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("side", [2, 3, 4])
def test_search_costs(kernels: Any, weighted: bool, side: int) -> None:
    shape, reach, stride = (5, 6, 7), np.array([1, 2, 1]), np.array([2, 1, 3])
    fixed, moved = noise(18, *shape), noise(19, *(np.array(shape) + 2 * stride * reach))
    inside = (np.random.default_rng(20).random(moved.shape) < 0.7).astype(np.float32)
    weight = (np.random.default_rng(21).random(shape) < 0.6).astype(np.float32) if weighted else NO_WEIGHT
    blocks = tuple(-(-n // side) for n in shape)
    out = np.empty((*blocks[:2], int(np.prod(2 * reach + 1)), blocks[2]), np.float32)
    kernels.search_costs(fixed, weight, moved, inside, reach, stride, side, np.float32(2.0), out)
    places = list(itertools.product(*[s * np.arange(2 * r + 1) for r, s in zip(reach, stride, strict=True)]))
    for block in np.ndindex(*blocks):
        box = tuple(slice(b * side, b * side + side) for b in block)
        here = fixed[box].astype(np.float64)
        share = weight[box] if weighted else np.ones_like(here)
        for d, step in enumerate(places):
            there = tuple(slice(b.start + s, b.start + s + n) for b, s, n in zip(box, step, here.shape, strict=True))
            cost = np.where(inside[there] != 0, (here - moved[there]) ** 2, 2.0)
            assert out[block[0], block[1], d, block[2]] == pytest.approx((share * cost).mean(), abs=1e-4)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1)])
def test_costs_are_spread_over_neighbours(kernels: Any, shape: tuple[int, int, int]) -> None:
    costs = noise(22, shape[0], shape[1], 4, shape[2])
    expected = np.moveaxis(costs, 2, 3).astype(np.float64)
    for axis in range(3):
        total, weight = expected.copy(), np.ones(shape)
        for t in range(shape[axis]):
            for s in (t - 1, t + 1):
                if 0 <= s < shape[axis]:
                    here = (slice(None),) * axis + (t,)
                    there = (slice(None),) * axis + (s,)
                    total[here] += 0.5 * expected[there]
                    weight[here] += 0.5
        expected = total / weight[..., None]
    kernels.spread_costs(costs, np.empty((max(shape[:2]), 4, shape[2]), np.float32))
    np.testing.assert_allclose(np.moveaxis(costs, 2, 3), expected, atol=1e-5)


def test_the_nearest_match_minds_cost_and_tie(kernels: Any) -> None:
    costs, displacements, field = noise(23, 2, 3, 6, 4), 3.0 * noise(24, 6, 3), noise(25, 2, 3, 4, 3)
    costs[0, 0, :, 0] = np.nan  # nothing to choose from
    out = np.empty((2, 3, 4, 3), np.float32)
    kernels.nearest_match(costs, displacements, field, np.float32(0.1), out)
    for k, j, i in np.ndindex(2, 3, 4):
        total = costs[k, j, :, i] + 0.1 * ((displacements - field[k, j, i]) ** 2).sum(axis=1)
        there = 0 if np.isnan(total).all() else int(np.nanargmin(total))
        assert np.array_equal(out[k, j, i], displacements[there])


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1)])
def test_median_of_neighbours(kernels: Any, shape: tuple[int, int, int]) -> None:
    field, out = noise(26, *shape, 3), np.empty((*shape, 3), np.float32)
    kernels.median_of_neighbours(field, out)
    padded = np.pad(field, ((1, 1), (1, 1), (1, 1), (0, 0)), mode="edge")
    for k, j, i in np.ndindex(*shape):
        around = padded[k : k + 3, j : j + 3, i : i + 3].reshape(-1, 3)
        assert np.array_equal(out[k, j, i], np.median(around, axis=0))


def test_jacobians_of_a_cell_are_those_of_its_corners() -> None:
    field = noise(27, 3, 4, 4, 3)
    least, most = (np.empty((2, 3, 3), np.float32) for _ in range(2))
    deformable_kernels.cell_jacobians(field, TURN, least, most)
    for k, j, i in np.ndindex(2, 3, 3):
        found = []
        for a, b, c in itertools.product((k, k + 1), (j, j + 1), (i, i + 1)):
            steps = np.stack(
                [
                    field[a, b, i + 1] - field[a, b, i],
                    field[a, j + 1, c] - field[a, j, c],
                    field[k + 1, b, c] - field[k, b, c],
                ],
                axis=1,
            )
            found.append(np.linalg.det(np.eye(3) + steps @ TURN.T))
        assert least[k, j, i] == pytest.approx(min(found), abs=1e-4)
        assert most[k, j, i] == pytest.approx(max(found), abs=1e-4)
