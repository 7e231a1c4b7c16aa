"""Chance of a 5 mm margin against plain Monte Carlo; tier 1 beside vessels against tier 2; the time both take.

    python benchmarks/ablation/margin_chance.py [--cases 36] [--draws 20000] [--json FILE]

Monte Carlo: tumours of random shape, voxels and size, charts and computed zones at random poses, random covariances of
the pose; exact rotations, every point of the surface, the zone's errors looked up where each point comes to lie.
Beside a vessel the zone is drawn in anew at every draw.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.ablation import axisymmetric, bioheat, margin
from nav.ablation.applicators import load_applicator, place_zone
from nav.ablation.margin import compute_margin, surface_margins_mm
from nav.ablation.margin_chance import UncertainZone, _directions, _modes_at, _root, margin_chance, prepare_chance
from nav.ablation.needle_zone import NeedleShape
from nav.ablation.prediction import Applied, Band, place_shape, predict_band, predict_box, predict_shape
from nav.ablation.thermal import load_tissue
from nav.ablation.tumour import TumourModel
from nav.ablation.vessel_cut import VesselWalls, cut_zone, vessel_walls
from nav.ablation.zone import Zone
from nav.geometry.directions import axes_along
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

Array = NDArray[np.float64]
EMPRINT, LIVER = load_applicator("emprint"), load_tissue("liver")
SETTINGS = ((100.0, 600.0), (75.0, 300.0), (100.0, 300.0))
SPACINGS = ((1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (0.8, 0.8, 5.0))


def tumour(rng: np.random.Generator, radii: Array, spacing: tuple[float, float, float]) -> TumourModel:
    """A lobed ellipsoid, turned at random."""
    reach = 1.3 * float(radii.max()) + 4.0
    counts = [int(2.0 * reach / s) | 1 for s in spacing]
    x, y, z = ((np.arange(n) - n // 2) * s for n, s in zip(counts, spacing, strict=True))
    points = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1) @ Rotation.random(rng=rng).as_matrix()
    lobes = 1.0 + 0.08 * np.cos(3.0 * np.arctan2(points[..., 1], points[..., 0]))
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = x[0], y[0], z[0]
    inside = np.linalg.norm(points / radii, axis=-1) * lobes < 1.0
    return TumourModel.from_mask(Volume.of(inside.astype(np.uint8), matrix))


def tube(point: Array, direction: Array, radius_mm: float) -> Volume:
    """A straight vessel through a box of 120 mm about the origin."""
    grid = np.arange(121) - 60.0
    points = np.stack(np.meshgrid(grid, grid, grid, indexing="ij")[::-1], axis=-1) - point
    along = direction / np.linalg.norm(direction)
    away = np.linalg.norm(points - (points @ along)[..., None] * along, axis=-1)
    matrix = np.eye(4)
    matrix[:3, 3] = -60.0
    return Volume.of((away <= radius_mm).astype(np.uint8), matrix)


def least(run: Callable[[], Any], repeats: int = 7) -> float:
    """Shortest of several runs, ms of process time."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return 1e3 * min(times)


class Case:
    """One geometry; beside a vessel when ``walls`` is given."""

    def __init__(self, seed: int, shapes: dict[tuple[float, float], tuple[NeedleShape, Band]], vessel: bool) -> None:
        rng = np.random.default_rng(seed)
        radii = rng.uniform(4.0, 9.0) if vessel else rng.uniform(5.0, 13.0)
        self.model = tumour(rng, radii * rng.uniform(0.8, 1.25, 3), SPACINGS[seed % 3])
        self.setting = SETTINGS[0] if vessel else SETTINGS[rng.integers(3)]
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        matrix = np.eye(4)
        matrix[:3, :3] = axes_along(axis)
        offset = EMPRINT.size(*self.setting).offset_mm
        matrix[:3, 3] = self.model.centroid_ras + offset * axis + rng.normal(size=3) * rng.uniform(0.5, 3.0)
        self.pose = Rigid.from_matrix(matrix, "TipToRas")
        spread = rng.normal(size=(3, 3))
        spread = spread @ spread.T
        self.covariance = np.zeros((6, 6))
        self.covariance[:3, :3] = spread * rng.uniform(0.7, 2.0) ** 2 * 3.0 / np.trace(spread)
        self.covariance[3:, 3:] = np.eye(3) * math.radians(rng.uniform(0.3, 3.0)) ** 2
        self.chart = not vessel and seed % 4 == 0
        self.shape, band = shapes[self.setting]
        self.band = None if self.chart else band
        self.walls: VesselWalls | None = None
        if vessel:
            side = np.cross(axis, rng.normal(size=3))
            point = self.model.centroid_ras + rng.uniform(12.0, 18.0) * side / np.linalg.norm(side)
            self.walls = vessel_walls(tube(point, axis + 0.3 * rng.normal(size=3), 2.5))

    def zone(self, pose: Rigid) -> Zone:
        if self.chart:
            return place_zone(EMPRINT, *self.setting, pose)
        placed = place_shape(EMPRINT, *self.setting, LIVER, self.shape, pose)
        return placed if self.walls is None else cut_zone(placed, self.walls, "microwave")

    def drawn(self, draws: int) -> Array:
        """Smallest margins by plain Monte Carlo."""
        rng = np.random.default_rng(1)
        points, root = self.model.surface_points, _root(self.covariance)
        across = _directions(points, self.zone(self.pose))[1] @ self.model.voxel_axes_mm / math.sqrt(12.0)
        own = np.concatenate([np.maximum(across, 0.0), np.maximum(-across, 0.0)], axis=1)
        out = np.empty(draws)
        for k in range(draws):
            error = root @ rng.normal(size=6)
            matrix = np.eye(4)
            matrix[:3, :3] = Rotation.from_rotvec(error[3:]).as_matrix() @ self.pose.rotation
            matrix[:3, 3] = self.pose.translation + error[:3]
            pose = Rigid.from_matrix(matrix, "TipToRas")
            margins = surface_margins_mm(points, self.zone(pose)) + own @ rng.normal(size=6)
            if self.band is not None:
                margins += _modes_at(points, self.band, pose) @ rng.normal(size=len(self.band.modes_mm))
            out[k] = margins.min() + self.model.patch_sigma_mm * rng.normal()
        return out


def chances(count: int, draws: int, vessel: bool) -> dict[str, Any]:
    """Against Monte Carlo."""
    shapes = {}
    for setting in SETTINGS:
        shape = predict_shape(EMPRINT, *setting, LIVER)
        shapes[setting] = shape, predict_band(EMPRINT, *setting, LIVER, shape)
    rows = []
    for seed in range(count):
        case = Case(seed, shapes, vessel)
        zone, samples = case.zone(case.pose), prepare_chance(case.model)
        one = [UncertainZone(zone, case.pose, case.covariance, case.band)]
        found = compute_margin(case.model, zone)
        chance = margin_chance(samples, one, found.worst_point_ras)
        true = case.drawn(draws)
        rows.append(
            [
                chance.p_ge5, float((true >= 5.0).mean()), chance.sigma_mm / float(true.std()),
                chance.at_least_mm - float(np.quantile(true, 0.05)), chance.p_ge5_worst,
                least(lambda: margin_chance(samples, one, found.worst_point_ras)),  # noqa: B023
                least(lambda: compute_margin(case.model, case.zone(case.pose))),  # noqa: B023
            ]
        )  # fmt: skip
    table = np.array(rows)
    off = table[:, 0] - table[:, 1]
    return {
        "cases": count, "draws": draws, "p_range": [float(table[:, 1].min()), float(table[:, 1].max())],
        "p_off_largest": float(np.abs(off).max()), "p_off_rms": float(np.sqrt((off**2).mean())),
        "p_off_mean": float(off.mean()), "sigma_off_largest": float(np.abs(table[:, 2] - 1.0).max()),
        "at_least_off_largest_mm": float(np.abs(table[:, 3]).max()),
        "worst_point_less_surface_largest": float((table[:, 4] - table[:, 1]).max()),
        "chance_ms": [float(np.median(table[:, 5])), float(table[:, 5].max())],
        "placed_and_margin_ms": [float(np.median(table[:, 6])), float(table[:, 6].max())],
    }  # fmt: skip


def beside_vessels() -> list[dict[str, Any]]:
    """Radius towards a tube of 5 mm and volume, tier 1 and tier 2, as shares of those without."""
    pose, rows = Rigid.identity("TipToRas"), []
    for setting in SETTINGS[:2]:
        free = place_shape(EMPRINT, *setting, LIVER, predict_shape(EMPRINT, *setting, LIVER), pose)
        box = predict_box([Applied(EMPRINT, *setting, pose)], LIVER)
        middle = free.centre_ras
        grid = middle + np.stack(np.meshgrid(*[np.arange(-30.0, 31.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        whole = int((surface_margins_mm(grid, free) >= 0.0).sum())
        up, right, front = np.eye(3)[2], np.eye(3)[0], np.eye(3)[1]
        for name, point, along, way in (
            ("parallel 8", 8.0 * right, up, right), ("parallel 10", 10.0 * right, up, right),
            ("parallel 15", 15.0 * right, up, right), ("parallel 20", 20.0 * right, up, right),
            ("crossing 10", middle + 10.0 * right, front, right), ("crossing 15", middle + 15.0 * right, front, right),
            ("ahead 15", middle + 15.0 * up, right, up),
        ):  # fmt: skip
            mask = tube(point, along, 2.5)
            cut = cut_zone(free, vessel_walls(mask), "microwave")
            cooled = predict_box([Applied(EMPRINT, *setting, pose)], LIVER, vessels=mask)
            reach = [_reach(z, middle, way) for z in (free, cut, box, cooled)]
            rows.append(
                {
                    "setting": setting, "tube": name, "planes": 0 if cut.cut is None else len(cut.cut.heights_mm),
                    "radius_mm": [round(r, 1) for r in reach],
                    "volume_share": [
                        round(int((surface_margins_mm(grid, cut) >= 0.0).sum()) / whole, 2),
                        round(cooled.volume_ml / box.volume_ml, 2),
                    ],
                }
            )  # fmt: skip
    return rows


def _reach(zone: Zone, middle: Array, way: Array) -> float:
    steps = np.linspace(0.0, 35.0, 701)
    return float(steps[np.flatnonzero(surface_margins_mm(middle + steps[:, None] * way, zone) < 0.0)[0]])


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=36)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for kernel in (*axisymmetric.KERNELS, *bioheat.KERNELS, *margin.KERNELS):
        kernel.compile()
    report = {
        "chance": chances(arguments.cases, arguments.draws, False),
        "chance_beside_a_vessel": chances(max(arguments.cases // 3, 1), max(arguments.draws // 4, 1), True),
        "beside_vessels_radius_free_tier1_free2_tier2": beside_vessels(),
    }
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
