"""The kernels of the path check against plain twins."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from nav.geometry.volume import Volume
from nav.planning import kernels
from nav.planning.grid import Grid
from nav.planning.kernels import FARTHEST_MM, STEP_MM


def cells(shape: tuple[int, int, int], pitch: tuple[float, float, float]) -> Grid:
    affine = np.diag([*pitch, 1.0])
    return Grid(affine, shape, np.array(pitch))


def boxes_twin(marked: np.ndarray, pitch: tuple[float, float, float]) -> np.ndarray:
    """Distance of every middle to every marked box."""
    at = np.argwhere(np.ones_like(marked))[:, ::-1] * pitch
    seeds = np.argwhere(marked)[:, ::-1] * pitch
    gaps = np.maximum(np.abs(at[:, None] - seeds[None]) - 0.5 * np.array(pitch), 0.0)
    return np.linalg.norm(gaps, axis=2).min(axis=1).reshape(marked.shape)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (6, 1, 9)])
@pytest.mark.parametrize("slack", [0.0, 0.7])
def test_distances_are_those_to_the_boxes_rounded_down(shape: tuple[int, int, int], slack: float) -> None:
    pitch = (1.1, 0.7, 2.6)
    rng = np.random.default_rng(3)
    for share in (0.05, 0.4):
        marked = rng.random(shape) < share
        marked.flat[0] = True
        twin = np.clip(np.minimum(boxes_twin(marked, pitch), FARTHEST_MM) - slack, 0.0, None)
        got = cells(shape, pitch).distance(marked, slack) * STEP_MM
        assert (got <= twin + 1e-9).all()
        assert (got > twin - STEP_MM - 1e-4).all()


def test_nothing_marked_is_as_far_as_is_known() -> None:
    assert (cells((2, 3, 4), (1, 1, 1)).distance(np.zeros((2, 3, 4), bool)) == round(FARTHEST_MM / STEP_MM)).all()


def test_far_from_a_box_the_distance_is_cut() -> None:
    marked = np.zeros((1, 1, 60), bool)
    marked[0, 0, 0] = True
    got = cells((1, 1, 60), (1, 1, 1)).distance(marked)
    assert got[0, 0, 10] == 94  # 9.5 mm, rounded down
    assert (got[0, 0, 21:] == 199).all()


def test_nearest_is_the_smallest_interpolated_value() -> None:
    rng = np.random.default_rng(1)
    fields = rng.integers(0, 200, (2, 4, 5, 6)).astype(np.uint8)
    fields.setflags(write=False)
    ends = rng.uniform(-1.0, 6.0, (2, 7, 3))
    ends.setflags(write=False)
    out = np.empty((7, 2), np.float32)
    per_mm = np.array([1.0, 0.9, 0.8])
    per_mm.setflags(write=False)
    kernels._nearest(ends[0], ends[1], fields, 0.25, per_mm, out)
    for n in range(7):
        length = np.linalg.norm(ends[1, n] - ends[0, n])
        t = np.linspace(0.0, 1.0, int(np.ceil(length / 0.25)) + 1)[:, None]
        at = np.clip((ends[0, n] + t * (ends[1, n] - ends[0, n])) * per_mm, 0, np.array([5, 4, 3]))[:, ::-1].T
        for o in range(2):
            twin = ndimage.map_coordinates(fields[o].astype(float), at, order=1, mode="nearest").min()
            assert out[n, o] == pytest.approx(twin, abs=1e-3)


def check(entries: np.ndarray, tips: np.ndarray, through: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A slab of organ (z ≥ 8), a tumour in it (z 16 to 20), an obstacle beside the axis (x ≥ 14), 1 mm cells."""
    shape = (26, 5, 24)
    grid = cells(shape, (1, 1, 1))
    z, _, x = np.indices(shape)
    near = (x < 6) & (z >= 16) & (z <= 20)
    fields = [grid.distance(m) for m in (x >= 14, z >= 8, z < 8, near, ~near)]
    args = [np.ascontiguousarray(a, np.float64) for a in (entries, tips)]
    blurred = (10 * np.clip(z, 0, 25)).astype(np.uint8)
    stacks = [np.stack(fields[:1]), np.stack([*fields[1:3], blurred]), np.stack(fields[3:])]
    half = grid.half_diagonal_mm
    vectors = [
        np.array([grid.threshold_mm(2.25) / STEP_MM]), np.array([(2.0 + half) / STEP_MM]), np.ones(3),
        np.array([STEP_MM, 0.5, 1.5, 0.1]),
    ]  # fmt: skip
    flags = np.array([through], np.uint8)
    for a in (*args, *stacks, *vectors, flags):
        a.setflags(write=False)
    hit, places = np.zeros((len(entries), 3), np.uint8), np.zeros((len(entries), 3), np.float32)
    kernels._check(
        args[0], args[1], stacks[0], vectors[0], vectors[1], flags, stacks[1], stacks[2],
        grid.threshold_mm(0.25) / STEP_MM, vectors[2], vectors[3], hit, places,
    )  # fmt: skip
    return hit, places


def test_paths_are_marched_as_by_hand() -> None:
    entries = np.array([[3, 2, 0], [3, 2, 0], [10, 2, 0], [3, 2, 0], [3, 2, 10], [3, 2, np.nan], [3, 2, 0]], float)
    tips = np.array([[3, 2, 18], [22, 2, 18], [10, 2, 18], [3, 2, 4], [3, 2, 18], [3, 2, 18], [3, 2, 0]], float)
    hit, places = check(entries, tips)
    # Free; through the obstacle; 3.5 mm beside it; ends before the organ; starts in it; not finite; no length.
    assert hit.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0], [1, 1, 1], [1, 1, 1]]
    capsule, parenchyma, sine = places[0]
    assert 7.5 <= capsule <= 9.5
    assert 8.0 - 2.6 <= parenchyma <= 8.0
    assert sine == pytest.approx(1.0, abs=0.01)


def test_an_obstacle_through_the_target_counts_up_to_the_target() -> None:
    entries, tips = np.array([[3.0, 2, 0]]), np.array([[3.0 + 12.5, 2, 45.0 / 2]])
    assert check(entries, tips)[0][0, 0] == 1
    # Leaves the tumour towards the obstacle: what lies beyond the first certain point in it is not looked at.
    steep = np.array([[3.0, 2, 0]]), np.array([[4.0, 2, 18.0]])
    assert check(*steep, through=True)[0][0, 0] == 0


@pytest.mark.parametrize("turned", [False, True])
def test_interpolated_bounds_hold_everywhere(turned: bool) -> None:
    """A value at or above the threshold of d means at least d to every box, for masks on the grid and askew to it."""
    rng = np.random.default_rng(5)
    array = (rng.random((4, 6, 6)) < 0.04).astype(np.uint8)
    array[2, 3, 3] = 1
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    if turned:
        c, s = np.cos(0.4), np.sin(0.4)
        affine = np.array([[c, -s, 0, 1.3], [s, c, 0, 0.2], [0, 0, 1, 0.4], [0, 0, 0, 1]]) @ affine
    mask = Volume.of(array, affine)
    lattice = Volume.of(np.zeros((3, 9, 9), np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    grid = Grid.over(lattice, [[-6.0, -6, -6], [16.0, 16, 16]])
    marked, slack = grid.mark(mask)
    assert (slack > 0.0) == turned or not turned
    field = grid.distance(marked, slack).astype(float) * STEP_MM
    points = rng.uniform(-5.0, 15.0, (300, 3))
    at = (grid.local_mm(points) / grid.pitch_mm)[:, ::-1].T
    value = ndimage.map_coordinates(field, at, order=1, mode="nearest")
    centres = mask.to_ras(np.argwhere(array)[:, ::-1])
    axes = mask.ras_from_index[:3, :3] / mask.spacing_mm
    gaps = np.maximum(np.abs((points[:, None] - centres[None]) @ axes) - 0.5 * mask.spacing_mm, 0.0)
    true = np.linalg.norm(gaps, axis=2).min(axis=1)
    for d in (0.0, 0.5, 2.0, 5.0):
        sure = value >= grid.threshold_mm(d) if d else value >= grid.threshold_mm(1e-6)
        assert (true[sure] >= d).all()
        assert sure.any()
