"""Soft criteria of paths, each in 0 to 1, their weighted product, and which paths no other path beats in everything."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nav.planning.kernels import FARTHEST_MM
from nav.planning.paths import PathChecks
from nav.planning.zones import TipZone

__all__ = ["long_axis", "pareto", "rate", "score", "spread_out"]

Array = NDArray[np.float64]


def long_axis(points_ras: Array) -> tuple[Array, float]:
    """Longest principal axis of (n, 3) points (unit), and elongation: 1 − middle / longest spread, 0 for a ball."""
    if len(points_ras) < 4:
        return np.array([0.0, 0.0, 1.0]), 0.0
    values, vectors = np.linalg.eigh(np.cov(points_ras.T))
    spread = np.sqrt(np.maximum(values, 0.0))
    return vectors[:, 2], float(1.0 - spread[1] / spread[2]) if spread[2] > 0.0 else 0.0


def rate(
    paths: PathChecks,
    distances_mm: Array,
    target_points_ras: Array,
    cover_points_ras: Array,
    zone: TipZone,
    needle_length_mm: float,
) -> dict[str, Array]:
    """Criteria of n paths, 1 is best.

    Parameters
    ----------
    distances_mm : (n, s) from `nav.planning.paths.obstacle_distances_mm`
    target_points_ras : (m, 3) of the target
    cover_points_ras : (p, 3) of target + margin, a sample
    zone : TipZone
        The largest one; its share of ``cover_points_ras`` from the path's tip is ``coverage``.

    Returns
    -------
    dict of (n,)
        length: 1 − length / needle; risk: smallest distance to a structure, 1 from 20 mm on (1 without structures);
        capsule_angle: 1 across the capsule; out_of_plane: 1 in the scan plane; alignment: with the target's long
        axis, as far as it has one; coverage.
    """
    direction = (paths.tips_ras - paths.entries_ras) / paths.length_mm[:, None]
    axis, elongation = long_axis(target_points_ras)
    nearest = distances_mm.min(axis=1) if distances_mm.shape[1] else np.full(len(direction), FARTHEST_MM)
    coverage = np.empty(len(direction))
    for begin in range(0, len(direction), 2000):
        part = slice(begin, begin + 2000)
        relative = cover_points_ras[None] - paths.tips_ras[part, None]
        along = np.einsum("npc,nc->np", relative, direction[part])
        across = np.sqrt(np.maximum(np.einsum("npc,npc->np", relative, relative) - along**2, 0.0))
        coverage[part] = zone.contains(along, across).mean(axis=1)
    return {
        "length": np.clip(1.0 - paths.length_mm / needle_length_mm, 0.0, 1.0),
        "risk": np.clip(nearest / FARTHEST_MM, 0.0, 1.0),
        "capsule_angle": np.clip(paths.capsule_angle_deg / 90.0, 0.0, 1.0),
        "out_of_plane": 1.0 - np.abs(paths.out_of_plane_deg) / 90.0,
        "alignment": 1.0 - elongation * (1.0 - np.abs(direction @ axis)),
        "coverage": coverage,
    }


def score(criteria: Mapping[str, Array], weights: Mapping[str, float]) -> Array:
    """(n,) product of criterion ** weight: a criterion of 0 with a weight vetoes."""
    parts = [np.power(criteria[name], weight) for name, weight in weights.items() if weight > 0.0]
    return np.asarray(np.prod(parts, axis=0)) if parts else np.ones(len(next(iter(criteria.values()))))


def pareto(criteria: Mapping[str, Array], names: list[str], among: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which of the paths ``among`` no other of them beats: as good in every named criterion and better in one.

    Where ``among`` are the best by `score` with those names' weights above 0, this is the Pareto set of all paths cut
    to them: who beats a path in everything has a higher score.
    """
    values = np.stack([criteria[n][among] for n in names], axis=1)
    best = np.ones(len(values), bool)
    for n, own in enumerate(values):
        best[n] = not bool(((values >= own).all(axis=1) & (values > own).any(axis=1)).any())
    return best


def spread_out(
    paths: PathChecks, order: NDArray[np.intp], count: int, apart_mm: float, apart_deg: float, tips_mm: float
) -> NDArray[np.intp]:
    """Up to ``count`` of the paths in ``order`` (best first) that differ: in entry, direction or tip."""
    chosen: list[int] = []
    direction = (paths.tips_ras - paths.entries_ras) / np.maximum(paths.length_mm, 1e-9)[:, None]
    cosine = np.cos(np.radians(apart_deg))
    left = np.ones(len(order), bool)
    for place, path in enumerate(order):
        if not left[place]:
            continue
        chosen.append(int(path))
        if len(chosen) == count:
            break
        rest = order
        same = (direction[rest] @ direction[path] > cosine) & (
            np.linalg.norm(paths.entries_ras[rest] - paths.entries_ras[path], axis=1) < apart_mm
        )
        same &= np.linalg.norm(paths.tips_ras[rest] - paths.tips_ras[path], axis=1) < tips_mm
        left &= ~same
    return np.array(chosen, np.intp)
