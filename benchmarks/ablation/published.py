"""Computed zones against published experiments that nothing was fitted to.

    python benchmarks/ablation/published.py [--json FILE]

Huang 2012: width of the zone of a cooled 3 cm radiofrequency electrode in excised bovine liver perfused with
heparinised blood of 37 C, against flow: 39.25 - 4.4 mm per 10 ml/min/100 g (r = 0.84). Time and power are not in the
source: 12 minutes, and the one mean power that gives the published width at the middle flow (33 W in tissue; such
electrodes drew 45 to 51 W in excised liver, of which their water takes a part, Song 2015). Littrup 2009: width at -30 C
of cryoprobes in agar. Ringe 2015: microwave zones beside a glass tube of 5 mm with 700 ml/min in excised porcine liver:
the radius towards the tube falls to 37.2 % at 10 mm and 80.1 % at 15 mm.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nav.ablation import axisymmetric, bioheat
from nav.ablation.applicators import Electrode, HeldOut
from nav.ablation.bioheat import BoxGrid, Burst, Cells, heat_box, needle_source
from nav.ablation.needle_zone import shape_of_damage
from nav.ablation.prediction import around_needle
from nav.ablation.sources import NeedleGrid, line_source
from nav.ablation.thermal import Material, load_tissue

FLOWS = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
#: Radius of the electrode and temperature of its cooled shaft.
ELECTRODE_MM, COOLED_C, MEAN_W = 0.75, 15.0, 33.0
#: Surface of an argon probe.
PROBE_C = -120.0


def huang() -> dict[str, Any]:
    """Widths over flow with every ingredient of the model, and with each of them changed alone."""
    full = {"power_w": MEAN_W, "stasis": math.inf, "warm": True, "shaft": True, "limit": math.inf}
    changed: dict[str, dict[str, Any]] = {
        "as described": {},
        "perfusion stops where cells die": {"stasis": 1.0},
        "electric conductivity constant": {"warm": False},
        "no cooled shaft, the same net power (25.5 W)": {"shaft": False, "power_w": 25.5},
        "power 36 W": {"power_w": 36.0},
        "200 W, falling back at 100 C": {"power_w": 200.0, "warm": False, "limit": 100.0},
        "200 W, falling back at 100 C, perfusion stops": {
            "power_w": 200.0, "warm": False, "limit": 100.0, "stasis": 1.0
        },
    }  # fmt: skip
    report: dict[str, Any] = {
        "flow_ml_min_100g": FLOWS.tolist(), "published_short_mm": np.round(39.25 - 0.44 * FLOWS, 1).tolist(),
        "published_slope": -4.4,
    }  # fmt: skip
    for name, change in changed.items():
        widths = _huang_widths(**{**full, **change})
        slope, at_zero = np.polyfit(FLOWS / 10.0, widths, 1)
        report[name] = {
            "short_mm": np.round(widths, 1).tolist(), "slope_mm_per_10": round(float(slope), 2),
            "at_zero_mm": round(float(at_zero), 1),
            "rms_mm": round(float(np.sqrt(np.mean((widths - (39.25 - 0.44 * FLOWS)) ** 2))), 2),
        }  # fmt: skip
    return report


def _huang_widths(power_w: float, stasis: float, warm: bool, shaft: bool, limit: float) -> NDArray[np.float64]:
    liver = load_tissue("liver")
    grid = NeedleGrid(-49.5, 1.0, 100, 45)
    model = Electrode(
        tissue="liver", fitted_to="-", power_w=power_w, active_length_mm=30.0, radius_mm=ELECTRODE_MM,
        shaft_c=COOLED_C if shaft else None, held_out=HeldOut(long_mm=1.0, short_mm=1.0),
    )  # fmt: skip
    widths = []
    for flow in FLOWS:
        tissue = liver.model_copy(update={"perfusion_ml_per_min_kg": 10.0 * flow})
        # Set to a temperature, the generator falls back there; conductivity is then constant.
        around = around_needle(model, "W" if warm else "C", 100.0, grid, 0.0, tissue)
        around = replace(around, material=replace(around.material, stasis_damage=stasis), limit_c=limit)
        widths.append(shape_of_damage(grid, around.heat(grid, [720.0]).damage[0]).short_mm)
    return np.array(widths)


def littrup() -> dict[str, Any]:
    """Width at -30 C of one, two, three and four cryoprobes, 2 cm apart, 15 minutes, in agar of 39 C."""
    agar = load_tissue("liver_ex_vivo").model_copy(update={"initial_c": 39.0, "blood_c": 39.0, "name": "agar"})
    material = Material.frozen(agar)
    n = 90
    grid = BoxGrid((n, n, n), 1.0, (-(n - 1) / 2,) * 3)
    x: NDArray[np.float64] = np.arange(n, dtype=np.float64) - (n - 1) / 2
    layouts = {1: [(0, 0)], 2: [(-10, 0), (10, 0)], 3: [(-10, -5.8), (10, -5.8), (0, 11.5)],
               4: [(-10, -10), (10, -10), (-10, 10), (10, 10)]}  # fmt: skip
    report: dict[str, Any] = {"published_mm": {"1": 12, "2": 33, "3": 41, "4": 49}}
    for probes, places in layouts.items():
        held = np.full(grid.shape, np.nan, np.float32)
        for a, b in places:
            column = np.hypot(x[None] - a, x[:, None] - b) < 1.2
            held[np.abs(x) < 15.0] = np.where(column, np.float32(PROBE_C), held[np.abs(x) < 15.0])
        heat = heat_box(grid, material, [], [900.0], cells=Cells(held_c=held), keep_coldest=True)
        middle = 0.5 * (heat.coldest_c[n // 2 - 1] + heat.coldest_c[n // 2])
        area = {c: float((middle <= c).sum()) for c in (-30.0, -1.0)}
        report[str(probes)] = {
            "lethal_mm": round(2.0 * math.sqrt(area[-30.0] / math.pi), 1),
            "ice_mm": round(2.0 * math.sqrt(area[-1.0] / math.pi), 1),
            "lethal_share_of_ice": round(area[-30.0] / area[-1.0], 2),
        }  # fmt: skip
    return report


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
    report = {"huang_2012": huang(), "littrup_2009": littrup(), "ringe_2015_radius_and_area_percent": ringe()}
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
