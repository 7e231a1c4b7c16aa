"""A body in a CT, and slices of it as CT fluoroscopy sees them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from nav.geometry.volume import Volume

Array = NDArray[np.float64]

SHAPE = (56, 80, 88)
GRID = np.array([[-2.5, 0, 0, 110], [0, -2.5, 0, 95], [0, 0, 2.5, -70], [0, 0, 0, 1.0]])
CENTRE = GRID[:3, :3] @ np.array([43.5, 39.5, 27.5]) + GRID[:3, 3]
PIXELS, PIXEL_MM, THICKNESS_MM = 96, 2.0, 5.0


def body(seed: int) -> Array:
    """(k, j, i) HU: organs and vessels in air; left and right, front and back differ."""
    rng = np.random.default_rng(seed)
    k, j, i = (np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2.0) / 36.0
    inside = j**2 * 1.3 + (i / (1.0 - 0.15 * k)) ** 2 + 0.2 * i * j < 1.0
    organs, vessels = gaussian_filter(rng.normal(0, 1, SHAPE), 5), gaussian_filter(rng.normal(0, 1, SHAPE), 1.5)
    values = np.where(organs > 0.3 * organs.std(), 130.0, 40.0) + np.where(vessels > 1.5 * vessels.std(), 160.0, 0.0)
    return np.asarray(gaussian_filter(np.where(inside, values, -1000.0), 0.7))


BODY = body(1)


def ct(values: Array = BODY, noise: float = 15.0) -> Volume:
    noisy = values + np.random.default_rng(2).normal(0, noise, SHAPE)
    return Volume.of(np.rint(noisy).astype(np.int16), GRID)


def upright() -> Array:
    """(4, 4) grid of a transverse slice through the middle, as a DICOM slice lies."""
    return placed(np.diag([-1.0, -1.0, 1.0]))


def oblique() -> Array:
    """One that leans by 35 degrees, left-handed."""
    return placed(Rotation.from_euler("xyz", [30, -20, 40], degrees=True).as_matrix() @ np.diag([1.0, -1.0, 1.0]))


def placed(axes: Array, slices: int = 1) -> Array:
    grid = np.eye(4)
    grid[:3, :3] = axes * [PIXEL_MM, PIXEL_MM, THICKNESS_MM]
    grid[:3, 3] = CENTRE - grid[:3, :3] @ [(PIXELS - 1) / 2.0, (PIXELS - 1) / 2.0, (slices - 1) / 2.0]
    return grid


def away(millimetres: float, degrees: float, seed: int = 3) -> Array:
    """(4, 4) about the middle of the body."""
    rng = np.random.default_rng(seed)
    axis, direction = (v / np.linalg.norm(v) for v in rng.normal(0, 1, (2, 3)))
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    out[:3, 3] = CENTRE - out[:3, :3] @ CENTRE + millimetres * direction
    return out


def seen(
    grid: Array,
    truth: Array,
    *,
    of: Array = BODY,
    slices: int = 1,
    noise: float = 30.0,
    needle: bool = False,
    motion: Callable[[Array], Array] | None = None,
) -> Volume:
    """Slices on ``grid`` that lie in the CT where ``truth`` (slices to CT) takes them; padding outside a disc.

    ``motion`` takes (n, 3) points of the slices to (n, 3) mm by which they lie elsewhere in the CT.
    """
    rng = np.random.default_rng(5)
    shape = (slices, PIXELS, PIXELS)
    k, j, i = np.indices(shape)
    points = np.stack([i, j, k], -1).reshape(-1, 3) @ grid[:3, :3].T + grid[:3, 3]
    normal = grid[:3, 2] / np.linalg.norm(grid[:3, 2])
    index = np.linalg.inv(GRID)
    values = np.zeros(len(points))
    profile = np.linspace(-0.5, 0.5, 7) * THICKNESS_MM
    for z in profile:
        there = (points + z * normal) @ truth[:3, :3].T + truth[:3, 3]
        if motion is not None:
            there = there + motion(points)
        at = (there @ index[:3, :3].T + index[:3, 3])[:, ::-1].T
        values += map_coordinates(of, at, order=3, mode="constant", cval=-1000.0) / len(profile)
    out = values.reshape(shape) + rng.normal(0, noise, shape)
    middle = (PIXELS - 1) / 2.0
    if needle:
        # From the right border to the middle, with dark streaks beside it.
        out[:, (np.abs(j - middle) < 4)[0] & (i > middle)[0]] -= 250.0
        out[:, (np.abs(j - middle) < 1)[0] & (i > middle)[0]] = 3000.0
    out = np.where(np.hypot(i - middle, j - middle) < 0.48 * PIXELS, out, -2000.0)
    return Volume.of(np.rint(out).astype(np.int16), grid)


def points_of(grid: Array) -> Array:
    """(n, 3) mm in a slice, inside the body."""
    index = np.random.default_rng(4).uniform(25, PIXELS - 25, (100, 2))
    return np.column_stack([index, np.zeros(100)]) @ grid[:3, :3].T + grid[:3, 3]
