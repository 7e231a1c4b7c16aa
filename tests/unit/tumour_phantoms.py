"""Voxelised tumours for tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.ablation.zone import EllipsoidZone
from nav.geometry.volume import Volume

CENTRE = np.array([10.3, -20.2, 35.7])
OBLIQUE = Rotation.from_rotvec([0.3, 0.2, -0.5]).as_matrix()


def ball(
    radius_mm: float,
    spacing_mm: tuple[float, float, float],
    *,
    directions: NDArray[np.float64] | None = None,
    pad_mm: float = 4.0,
) -> Volume:
    """A ball about `CENTRE`, which lies off the grid; ``directions`` holds the voxel axes in columns."""
    spacing = np.array(spacing_mm)
    axes = np.eye(3) if directions is None else directions
    counts = (2.0 * (radius_mm + pad_mm) / spacing).astype(int) + 4
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((counts - 1) / 2.0 + 0.21)
    k, j, i = np.indices(counts[::-1])
    points = np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    inside = np.sum((points - CENTRE) ** 2, axis=-1) <= radius_mm**2
    return Volume.of(inside.astype(np.uint8), affine)


def zone(
    centre: NDArray[np.float64], semi_long_mm: float, semi_short_mm: float, axis: tuple[float, float, float] = (0, 0, 1)
) -> EllipsoidZone:
    """A zone without a device."""
    direction = np.array(axis, dtype=np.float64)
    return EllipsoidZone(
        np.asarray(centre, dtype=np.float64),
        direction / np.linalg.norm(direction),
        semi_long_mm,
        semi_short_mm,
        0,
        "",
        0.0,
        0.0,
        "",
        "",
    )


def ball_on(
    grid: Volume, centre: NDArray[np.float64], radius_mm: float | NDArray[np.float64], *, value: int = 1
) -> Volume:
    """A ball, or an ellipsoid along RAS with three semi-axes, on the grid of ``grid``."""
    away = ((grid.voxels_ras() - centre) / radius_mm) ** 2
    inside = (away.sum(axis=1) <= 1.0).reshape(grid.array.shape)
    return Volume.of(np.where(inside, value, 0).astype(np.uint8), grid.ras_from_index)


def empty_grid(
    spacing_mm: tuple[float, float, float],
    *,
    half_mm: float = 22.0,
    directions: NDArray[np.float64] | None = None,
    shift_voxels: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Volume:
    """A grid about the origin, a voxel centre on it unless shifted."""
    spacing = np.array(spacing_mm)
    counts = 2 * np.ceil(half_mm / spacing).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if directions is None else directions) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((counts - 1) / 2.0 + np.array(shift_voxels))
    return Volume.of(np.zeros(tuple(counts[::-1]), np.uint8), affine)
