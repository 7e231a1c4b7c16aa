"""A body with an organ, a tumour, a rib and a vessel, on any grid; and a check of paths that shares no code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nav.geometry.volume import Volume

F64 = NDArray[np.float64]

ORGAN = np.array([0.0, 0.0, 0.0]), 36.0
TUMOUR = np.array([6.0, 4.0, 2.0]), 8.0


def grid(spacing: tuple[float, float, float], half_mm: float, turn: F64 | None = None) -> Volume:
    """An empty grid around the origin."""
    counts = np.floor(2 * half_mm / np.array(spacing)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((counts - 1) / 2.0)
    return Volume.of(np.zeros(counts[::-1], np.uint8), affine)


def ball(on: Volume, centre: F64, radius: float) -> Volume:
    return Volume.of(
        (np.linalg.norm(on.voxels_ras() - centre, axis=1) <= radius).reshape(on.array.shape).astype(np.uint8),
        on.ras_from_index,
    )


def box(on: Volume, low: tuple[float, ...], high: tuple[float, ...]) -> Volume:
    p = on.voxels_ras()
    return Volume.of(((p >= low) & (p <= high)).all(axis=1).reshape(on.array.shape).astype(np.uint8), on.ras_from_index)


def lookup(mask: Volume, points: F64) -> NDArray[np.bool_]:
    index = np.floor(
        points @ np.linalg.inv(mask.ras_from_index)[:3, :3].T + np.linalg.inv(mask.ras_from_index)[:3, 3] + 0.5
    )
    index = index.astype(int)
    ok = ((index >= 0) & (index < mask.array.shape[::-1])).all(axis=1)
    out = np.zeros(len(points), bool)
    out[ok] = np.asarray(mask.array)[tuple(index[ok][:, ::-1].T)] > 0
    return out


def gap_to_boxes(mask: Volume, points: F64) -> F64:
    """Exact distance of points to the voxel boxes of a mask, of all that could be the nearest."""
    centres = mask.to_ras(np.argwhere(np.asarray(mask.array) > 0)[:, ::-1])
    axes = mask.ras_from_index[:3, :3] / mask.spacing_mm
    tree = cKDTree(centres)
    reach = tree.query(points)[0] + float(np.linalg.norm(mask.spacing_mm))
    out = np.empty(len(points))
    for n, near in enumerate(tree.query_ball_point(points, reach)):
        gap = np.maximum(np.abs((points[n] - centres[near]) @ axes) - 0.5 * mask.spacing_mm, 0.0)
        out[n] = np.linalg.norm(gap, axis=1).min()
    return out
