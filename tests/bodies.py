"""A simulated body on any grid, for registrations with known truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.registration.rigid_common import RigidImageRegistration

NAME = "MovingToFixed"


def body(seed: int) -> NDArray[np.float64]:
    """(96, 96, 96) at 2 mm: soft tissue with organs and vessels in air, HU."""
    rng = np.random.default_rng(seed)
    shape = (96, 96, 96)
    k, j, i = (np.indices(shape).astype(float) - 47.5) / 40.0
    inside = (k / 1.15) ** 2 + j**2 + (i / (0.95 - 0.1 * k)) ** 2 + 0.1 * j < 1.0
    organs = gaussian_filter(rng.normal(0, 1, shape), 7)
    vessels = gaussian_filter(rng.normal(0, 1, shape), 2)
    values = np.where(organs > 0.4 * organs.std(), 120.0, 40.0) + np.where(vessels > 2 * vessels.std(), 150.0, 0.0)
    return gaussian_filter(np.where(inside, values, -1000.0), 0.7)


BODY = body(1)
BODY_GRID = np.diag([2.0, 2.0, 2.0, 1.0])


def seen(
    grid: NDArray[np.float64],
    shape: tuple[int, int, int],
    ras_from_body: NDArray[np.float64] | None = None,
    *,
    of: NDArray[np.float64] = BODY,
    noise: float = 15.0,
    seed: int = 0,
) -> Volume:
    """The body as a scanner sees it that has the voxels ``grid``, the body lying where ``ras_from_body`` takes it."""
    k, j, i = np.indices(shape)
    ras = np.stack([i, j, k, np.ones(shape)], -1) @ grid.T
    index = ras @ np.linalg.inv((np.eye(4) if ras_from_body is None else ras_from_body) @ BODY_GRID).T
    values = map_coordinates(of, index[..., 2::-1].transpose(3, 0, 1, 2), order=3, mode="constant", cval=-1000.0)
    noisy = values + np.random.default_rng(seed).normal(0, noise, shape)
    return Volume.of(np.rint(noisy).astype(np.int16), grid)


def away(millimetres: float, degrees: float, seed: int = 3) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    axis, direction = (v / np.linalg.norm(v) for v in rng.normal(0, 1, (2, 3)))
    out = np.eye(4)
    centre = BODY_GRID[:3, :3] @ np.full(3, 47.5)
    out[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    out[:3, 3] = centre - out[:3, :3] @ centre + millimetres * direction
    return out


def oblique() -> NDArray[np.float64]:
    """(4, 4) of 80 x 88 x 64 voxels around the body, oblique, anisotropic."""
    grid = np.eye(4)
    grid[:3, :3] = Rotation.from_euler("xyz", [10, -7, 15], degrees=True).as_matrix() @ np.diag([2.3, 2.1, 3.0])
    grid[:3, 3] = np.full(3, 95.0) - grid[:3, :3] @ np.array([39.5, 43.5, 31.5])
    return grid


def lps() -> NDArray[np.float64]:
    """The body's own grid as a DICOM series stores it: i to the left, j to the back."""
    grid = np.diag([-2.0, -2.0, 2.0, 1.0])
    grid[:2, 3] = 190.0
    return grid


GRIDS = {"ras": (BODY_GRID, (96, 96, 96)), "lps": (lps(), (96, 96, 96)), "oblique": (oblique(), (64, 88, 80))}
POINTS = BODY_GRID[:3, :3] @ np.random.default_rng(4).uniform(20, 75, (200, 3)).T


def errors_mm(result: RigidImageRegistration, truth: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.linalg.inv(result.transform.matrix)
    apart = (found - truth)[:3, :3] @ POINTS + (found - truth)[:3, 3:]
    return np.asarray(np.linalg.norm(apart, axis=0))


def start(matrix: NDArray[np.float64] | None = None) -> Rigid:
    return Rigid.identity(NAME) if matrix is None else Rigid.from_matrix(np.linalg.inv(matrix), NAME)
