"""How well computed zones predict powers they were not fitted to, and the fits that `configs/applicators` ship.

    python benchmarks/ablation/held_out.py [--only NAME ...] [--tier2] [--json FILE]

Each set of measured zones (the shipped charts; He 2010, internally cooled, from the shared data) is fitted once as a
whole, and once for each power without that power, which is then predicted. With --tier2 the held-out powers are also
computed in three dimensions, with the same parameters.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from nav.ablation import axisymmetric, bioheat
from nav.ablation.applicators import Heating, HeldOut, load_applicator
from nav.ablation.axisymmetric import heat_needle
from nav.ablation.bioheat import BoxGrid, Burst, heat_box, needle_source
from nav.ablation.needle_zone import shape_of_damage
from nav.ablation.sources import NeedleGrid, line_source
from nav.ablation.thermal import Material, load_tissue

Array = NDArray[np.float64]

DATA = Path(os.environ.get("ABLATION_NAV_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
GRID = NeedleGrid(-60.0, 1.0, 121, 40)
#: What the fit starts from and is held to loosely: logarithms of efficiency, active length (mm), absorption (1/m; liver
#: at 2.45 GHz) and perfusion over the tissue's, and the powers of length and efficiency; then 1 sigma of each.
START = np.array([np.log(0.6), np.log(20.0), np.log(47.9), 0.0, 0.0, 0.0])
LOOSE = np.array([0.5, 0.5, 0.5, 0.15, 0.3, 0.15])
#: Weight of an error in length against one in width: lengths scatter more.
LENGTH_WEIGHT = 0.5


@dataclass(frozen=True)
class Zones:
    """Measured zones: power W, time s, length mm, width mm; and the tissue they were measured in."""

    rows: Array
    tissue: str
    basis: str


def he_2010(model: str, tissue: str) -> Zones:
    """Internally cooled antenna (He et al. 2010, Acad Radiol 17:7)."""
    with (DATA / "ablation_zones" / "he2010_mwa.csv").open() as file:
        rows = [
            [float(r[k]) for k in ("power_W", "time_min", "long_axis_diam_mm", "short_axis_diam_mm")]
            for r in csv.DictReader(file)
            if r["model"] == model and r["antenna"] == "internally-cooled"
        ]
    return Zones(np.array(rows) * [1.0, 60.0, 1.0, 1.0], tissue, "measured")


def chart(name: str, tissue: str) -> Zones:
    """A shipped chart."""
    rows = [[c.power_w, c.time_s, c.long_mm, c.short_mm] for c in load_applicator(name).chart]
    return Zones(np.array(rows), tissue, "chart")


def heating(x: Array, tissue: str) -> Heating:
    return Heating(
        tissue=tissue, fitted_to="-", efficiency=float(np.exp(x[0])), active_length_mm=float(np.exp(x[1])),
        absorption_per_m=float(np.exp(x[2])), perfusion_scale=float(np.exp(x[3])),
        length_power=float(x[4]), efficiency_power=float(x[5]),
        held_out=HeldOut(long_mm=1.0, short_mm=1.0),
    )  # fmt: skip


def predicted(x: Array, zones: Zones) -> Array:
    """(n, 2) lengths and widths of tier 1, one run per power."""
    model = heating(x, zones.tissue)
    material = Material.heated(load_tissue(zones.tissue), model.perfusion_scale)
    out = np.empty((len(zones.rows), 2))
    for power in np.unique(zones.rows[:, 0]):
        where = np.flatnonzero(zones.rows[:, 0] == power)
        times = np.unique(zones.rows[where, 1])
        source = line_source(GRID, 0.0, model.length_mm(power), model.absorption_per_m)
        heat = heat_needle(GRID, material, model.deposited_w(power) * source, times.tolist())
        shapes = dict(zip(times, (shape_of_damage(GRID, d) for d in heat.damage), strict=True))
        for row in where:
            shape = shapes[zones.rows[row, 1]]
            out[row] = shape.long_mm, shape.short_mm
    return out


def predicted_in_3d(x: Array, zones: Zones) -> Array:
    """(n, 2) lengths and widths of tier 2, along one oblique direction."""
    from nav.ablation.prediction import box_zone
    from nav.geometry.volume import Volume

    model = heating(x, zones.tissue)
    material = Material.heated(load_tissue(zones.tissue), model.perfusion_scale)
    axis = np.array([0.6, 0.0, 0.8])
    box = BoxGrid((104, 84, 96), 1.0, (-47.5, -41.5, -51.5))
    matrix = np.eye(4)
    matrix[:3, 3] = box.origin_mm
    out = np.empty((len(zones.rows), 2))
    for power in np.unique(zones.rows[:, 0]):
        where = np.flatnonzero(zones.rows[:, 0] == power)
        times = np.unique(zones.rows[where, 1])
        table = model.deposited_w(power) * line_source(GRID, 0.0, model.length_mm(power), model.absorption_per_m)
        burst = Burst(needle_source(box, GRID, table, np.zeros(3), axis), 0.0, float(times[-1]))
        heat = heat_box(box, material, [burst], times.tolist())
        for row in where:
            damage = heat.damage[int(np.searchsorted(times, zones.rows[row, 1]))]
            level = Volume.of(np.log(np.maximum(damage, np.float32(1e-12))), matrix)
            zone = box_zone(level, axis, "", "")
            out[row] = zone.long_mm, zone.short_mm
    return out


def fit(zones: Zones, start: Array) -> Array:
    """Parameters by least squares, held loosely to `START`."""
    loose = LOOSE.copy()
    if load_tissue(zones.tissue).perfusion_ml_per_min_kg == 0.0:
        loose[3] = 1e-3

    def residuals(x: Array) -> Array:
        off = (predicted(x, zones) - zones.rows[:, 2:]) * [LENGTH_WEIGHT, 1.0]
        return np.concatenate([off.ravel(), (x - START) / loose])

    return np.asarray(least_squares(residuals, start, diff_step=1e-2, max_nfev=15).x)


def rms(errors: Array) -> dict[str, float]:
    return named(np.sqrt((errors**2).mean(axis=0)))


def named(pair: Array) -> dict[str, float]:
    return {"long_mm": round(float(pair[0]), 2), "short_mm": round(float(pair[1]), 2)}


def measure(zones: Zones, in_3d: bool) -> dict[str, Any]:
    begin = time.perf_counter()
    x = fit(zones, START)
    inside = predicted(x, zones) - zones.rows[:, 2:]
    held, held_3d = np.empty_like(inside), np.empty_like(inside)
    for power in np.unique(zones.rows[:, 0]):
        out = zones.rows[:, 0] == power
        if out.all():
            raise SystemExit("one power only: nothing can be held out")
        without = fit(Zones(zones.rows[~out], zones.tissue, zones.basis), x)
        part = Zones(zones.rows[out], zones.tissue, zones.basis)
        held[out] = predicted(without, part) - part.rows[:, 2:]
        if in_3d:
            held_3d[out] = predicted_in_3d(without, part) - part.rows[:, 2:]
    model = heating(x, zones.tissue)
    report: dict[str, Any] = {
        "zones": len(zones.rows), "tissue": zones.tissue,
        "efficiency": round(model.efficiency, 3), "active_length_mm": round(model.active_length_mm, 2),
        "length_power": round(model.length_power, 3), "efficiency_power": round(model.efficiency_power, 3),
        "absorption_per_m": round(model.absorption_per_m, 2),
        "perfusion_scale": round(model.perfusion_scale, 3), "fitted_rms": rms(inside), "held_out_rms": rms(held),
        "held_out_max": named(abs(held).max(axis=0)), "held_out_bias": named(held.mean(axis=0)),
    }  # fmt: skip
    if in_3d:
        report["held_out_rms_tier2"] = rms(held_3d)
        report["tier2_from_tier1_mm"] = round(float(np.abs(held_3d - held).max()), 2)
    report["seconds"] = round(time.perf_counter() - begin, 1)
    return report


def main() -> None:
    """Fit, hold out, print."""
    names = ("he_in_vivo", "he_ex_vivo", "emprint", "amica", "acculis", "emprint_hp")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--tier2", action="store_true", help="held-out powers in three dimensions too (minutes)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for kernel in (*axisymmetric.KERNELS, *bioheat.KERNELS):
        kernel.compile()
    report: dict[str, Any] = {}
    for name in arguments.only:
        if name.startswith("he_") and not DATA.is_dir():
            report[name] = f"skipped: no data at {DATA}"
            continue
        if name == "he_in_vivo":
            zones = he_2010("in_vivo_canine_liver", "liver")
        elif name == "he_ex_vivo":
            zones = he_2010("ex_vivo_porcine_liver", "liver_ex_vivo")
        else:
            zones = chart(name, "liver" if name.startswith("emprint") else "liver_ex_vivo")
        report[name] = measure(zones, arguments.tier2)
        print(name, json.dumps(report[name]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
