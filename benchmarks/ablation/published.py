"""Computed zones against published experiments that nothing was fitted to.

    python benchmarks/ablation/published.py [--json FILE]

Huang 2012: width of the zone of a cooled 3 cm radiofrequency electrode in perfused bovine liver, 12 minutes, against
flow: 39.25 - 4.4 mm per 10 ml/min/100 g (r = 0.84, 25 zones). Ringe 2015: microwave zones beside a glass tube of 5 mm
with 700 ml/min in excised porcine liver: the radius towards the tube falls to 37.2 % at 10 mm and 80.1 % at 15 mm.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nav.ablation import axisymmetric, bioheat
from nav.ablation.axisymmetric import heat_needle
from nav.ablation.bioheat import BoxGrid, Burst, Cells, heat_box, needle_source
from nav.ablation.needle_zone import shape_of_damage
from nav.ablation.sources import NeedleGrid, joule_source, line_source
from nav.ablation.thermal import Material, load_tissue

FLOWS = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
#: Radius of the electrode and temperature of its cooled shaft.
ELECTRODE_MM, COOLED_C = 0.75, 18.0


def huang() -> dict[str, Any]:
    """Widths over flow: the generator (200 W) falls back when tissue boils."""
    liver = load_tissue("liver")
    grid = NeedleGrid(-50.0, 1.0, 101, 40)
    source = 200.0 * joule_source(grid, 0.0, 30.0, ELECTRODE_MM)
    held = np.full((grid.rows, grid.columns), np.nan)
    held[np.abs(grid.z_mm) < 15.0, 0] = COOLED_C
    widths = []
    for flow in FLOWS:
        tissue = liver.model_copy(update={"perfusion_ml_per_min_kg": 10.0 * flow})
        heat = heat_needle(
            grid, Material.heated(tissue), source, [720.0], held_c=held, limit_c=100.0, most_step_s=0.5
        )  # fmt: skip
        widths.append(shape_of_damage(grid, heat.damage[0]).short_mm)
    slope, at_zero = np.polyfit(FLOWS / 10.0, widths, 1)
    return {
        "flow_ml_min_100g": FLOWS.tolist(), "short_mm": np.round(widths, 1).tolist(),
        "published_short_mm": np.round(39.25 - 0.44 * FLOWS, 1).tolist(),
        "slope_mm_per_10": round(float(slope), 2), "published_slope": -4.4, "at_zero_mm": round(float(at_zero), 1),
    }  # fmt: skip


def ringe() -> dict[str, Any]:
    """Radius and area towards a cooled tube, against the same zone without one; two sizes of zone."""
    material = Material.heated(load_tissue("liver_ex_vivo"))
    n = 72
    grid = BoxGrid((n + 16, n, n), 1.0, (-(n - 1) / 2, -(n - 1) / 2, -(n + 15) / 2))
    x: NDArray[np.float64] = np.arange(n, dtype=np.float64) - (n - 1) / 2
    needle = NeedleGrid(-60.0, 1.0, 121, 60)
    report: dict[str, Any] = {"published": {"10 mm": [37.2, 50.5], "15 mm": [80.1, 89.7], "20 mm": [100.0, 100.0]}}
    for name, watt, seconds in (("smaller", 45.0, 480.0), ("larger", 63.0, 600.0)):
        table = watt * line_source(needle, 0.0, 18.0, 32.0)
        source = needle_source(grid, needle, table, np.zeros(3), np.array([0.0, 0.0, 1.0]))
        free = _towards(grid, material, source, seconds, x, None)
        report[name] = {"free_radius_mm": round(free[0], 1)}
        for distance in (10.0, 15.0, 20.0):
            radius, area = _towards(grid, material, source, seconds, x, distance)
            report[name][f"{distance:g} mm"] = [
                round(100.0 * radius / free[0], 1), round(100.0 * area / free[1], 1),
            ]  # fmt: skip
    return report


def _towards(
    grid: BoxGrid, material: Material, source: NDArray[np.float64], seconds: float, x: NDArray[np.float64],
    distance: float | None,
) -> tuple[float, float]:  # fmt: skip
    held = np.full(grid.shape, np.nan, np.float32)
    if distance is not None:
        held[:, np.hypot(x[:, None], x[None] - distance) < 2.5] = material.curve.reference_c
    heat = heat_box(grid, material, [Burst(source, 0.0, seconds)], [seconds], cells=Cells(held_c=held))
    level = np.log(np.maximum(heat.damage[0], 1e-9))
    middle, half = grid.shape[0] // 2 - 1, grid.shape[1] // 2 - 1
    plane = 0.5 * (level[middle] + level[middle + 1])
    line = 0.5 * (plane[half] + plane[half + 1])
    last = int(np.flatnonzero(line >= 0.0)[-1])
    return float(x[last] + line[last] / (line[last] - line[last + 1])), float((plane >= 0.0).sum())


def main() -> None:
    """Compute, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for kernel in (*axisymmetric.KERNELS, *bioheat.KERNELS):
        kernel.compile()
    report = {"huang_2012": huang(), "ringe_2015_radius_and_area_percent": ringe()}
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
